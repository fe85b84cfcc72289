"""Convolution, batch norm and activation as one Function, which keeps no activation.

    y = conv(x)        z = act(batch_norm(y) + residual)

A chain of layers keeps y, for batch norm, and z, which is the next convolution's x. Without a residual z follows from y
and from a few numbers per channel, so the next block of this kind keeps y in place of z: its backward normalises y
anew, with the same statistics, and gets the same bits.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from ._function import Function
from .batch_norm import gradients as norm_gradients

_ops = torch.ops.convnorm


def _saving_hook() -> Any:
    """The innermost saved_tensors_hooks (offloading, checkpointing), or None."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return None if hooks is None else hooks[0]


class Source:
    """What an activation was computed from, as long as it and its graph live.

    The affine parameters are copied: an optimizer may change them, and sharding free them, before the copy is used.
    """

    def __init__(
        self, out: Tensor, y: Tensor, affine: Sequence[Tensor | None], stats: Tensor, eps: float, relu: bool
    ):
        copies = (None if t is None else t.detach().clone() for t in affine)
        self.tensors: tuple[Tensor | None, ...] = (y, *copies, stats)
        self.settings, self.versions = (eps, relu), (out._version, y._version)
        hook = _saving_hook()
        self.hook = None if hook is None else weakref.ref(hook)

    def holds(self, out: Tensor) -> bool:
        """Whether out still has the values it was made with, and is saved by the hooks that saved its source.

        A checkpointed region must save the same tensors when it is run again, whatever became of its input.
        """
        y, *_ = self.tensors or (None,)
        if y is None or (out._version, y._version) != self.versions:
            return False
        return (None if self.hook is None else self.hook()) is _saving_hook()


# Not an attribute of the activation, which torch.save would write to the file.
_sources: Any = WeakTensorKeyDictionary()


def _pad(x: Tensor, edges: tuple[list[int], str] | None) -> Tensor:
    return x if edges is None else F.pad(x, edges[0], mode=edges[1])


def _unpad(grad: Tensor, size: Sequence[int], edges: tuple[list[int], str] | None) -> Tensor:
    """The gradient of what _pad was given."""
    if edges is None:
        return grad
    with torch.enable_grad():
        x = grad.new_empty(size).requires_grad_()  # only its size matters
        return torch.autograd.grad(_pad(x, edges), x, grad)[0]


class ConvNormAct(Function):
    """(z, y, stats); ``source`` is that of input, or None. Eager mode only."""

    @staticmethod
    def forward(input, conv_weight, conv_bias, weight, bias, residual, geometry, edges, eps, relu, source):
        y = _ops.conv_forward(_pad(input, edges), conv_weight, conv_bias, *geometry)
        out, stats = _ops.batch_norm_train(y, weight, bias, residual, eps, relu)
        return out, y, stats

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, conv_weight, _, weight, bias, residual, ctx.geometry, ctx.edges, ctx.eps, ctx.relu, source = inputs
        out, y, stats = output
        ctx.mark_non_differentiable(y, stats)
        ctx.set_materialize_grads(False)
        ctx.input_size, ctx.weight_size = list(input.shape), list(conv_weight.shape)
        need_input, need_weight, need_bias, *_ = ctx.needs_input_grad
        origin: tuple[Tensor | None, ...] = ()
        ctx.source_settings = ctx.made = None
        if need_weight or need_bias:
            origin = (input,) if source is None else source.tensors
            ctx.source_settings = None if source is None else source.settings
        masked_by = out if ctx.relu and residual is not None else None
        ctx.save_for_backward(conv_weight if need_input else None, y, weight, bias, masked_by, stats, *origin)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> Any:
        if grad_output is None:
            return (None,) * 11
        with torch.no_grad():
            found = _gradients(ctx, grad_output)
        made = None if ctx.made is None else ctx.made()
        if made is not None:  # y must not outlive the graph in an activation that the caller keeps
            made.tensors = ()
        if torch.is_grad_enabled():
            found = _once(found, f"ConvNormAct{len(ctx.weight_size) - 2}d")
        return (*found, *(None,) * 5)


def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Of input, conv_weight, conv_bias, weight, bias and residual."""
    conv_weight, *saved = ctx.saved_tensors
    saved, origin = saved[:5], saved[5:]
    need_input, need_weight, need_bias, *need_norm = ctx.needs_input_grad[:6]
    needs = (need_input or need_weight or need_bias, *need_norm)
    grad_y, *grad_norm = norm_gradients(grad_output, saved, ctx.eps, True, ctx.relu, needs)
    grad_input = grad_weight = grad_bias = None
    if need_weight or need_bias:
        x = origin[0]
        if ctx.source_settings is not None:
            y, weight, bias, stats = origin
            x = _ops.batch_norm_elemt(y, weight, bias, None, stats, *ctx.source_settings)
        x = _pad(x, ctx.edges)
        grad_weight, grad_bias = _ops.conv_by_weight(grad_y, x, ctx.weight_size, *ctx.geometry, need_bias)
        del x  # before there is a grad_input of its size
    if need_input:
        size = ctx.input_size
        if ctx.edges is not None:
            size = list(_pad(grad_y.new_empty(size, device="meta"), ctx.edges).shape)
        grad_input = _unpad(_ops.conv_by_input(grad_y, conv_weight, size, *ctx.geometry), ctx.input_size, ctx.edges)
    return (grad_input, grad_weight if need_weight else None, grad_bias if need_bias else None, *grad_norm)


def _once(found: tuple[Tensor | None, ...], name: str) -> tuple[Tensor | None, ...]:
    """Gradients that raise when they are differentiated: nothing connects them to the input that was not kept.

    torch's once_differentiable lets those pass whose grad_output is a constant, and a penalty then counts for nothing.
    """
    message = (
        f"{name}: second derivatives need activations that this layer does not keep; "
        "make it with recompute=False for torch.autograd.grad(..., create_graph=True)"
    )
    leaves: Any = [None if t is None else t.detach().requires_grad_() for t in found]
    return torch._C._functions.DelayedError(message.encode(), len(leaves))(*leaves)


def conv_norm_act(
    input: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, geometry: tuple[Any, ...], edges: tuple[list[int], str] | None, eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(z, y, stats) with batch statistics, recorded for one backward.

    ``geometry`` is (stride, padding, dilation, groups) as the ops take them; ``edges``, where padding is not by zeros,
    the amounts and the mode for :func:`torch.nn.functional.pad`.
    """
    source = _sources.get(input)
    if source is not None and not source.holds(input):
        source = None
    out, y, stats = ConvNormAct.call(
        input, conv_weight, conv_bias, weight, bias, residual, geometry, edges, eps, relu, source
    )
    if residual is None:
        made, node = Source(out, y, (weight, bias), stats, eps, relu), out.grad_fn
        _sources[out], node.made = made, weakref.ref(made)
    return out, y, stats
