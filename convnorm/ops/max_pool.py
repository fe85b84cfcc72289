"""Max pooling: fakes and autograd for convnorm::max_pool_forward, max_pool_backward and max_pool_gather.

The forward records where each maximum was (``argmax``). The backward is linear in the gradient, and its
transpose is the gather of the recorded positions: each is the other's backward, to any order.

``window`` is one list, as every list of a call costs 1 us: kernel_size, stride, padding, dilation of all dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._fake import empty, wants_channels_last
from ._function import Function, move_batch

_ops = torch.ops.convnorm

NOTHING, OFFSETS, INDICES = 0, 1, 2  # what the forward records


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """floor or ceil of (in + 2*padding - dilation*(kernel-1) - 1) / stride, plus 1, per spatial dimension.

    With ceil_mode a last window that would start in the high padding is dropped.
    """
    out = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        o = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
        out.append(o - 1 if ceil_mode and (o - 1) * s >= n + p else o)
    return out


def parts(window: Sequence[int], count: int) -> list[Sequence[int]]:
    """Kernel size, stride, padding (and dilation) of a window that lists ``count`` of them."""
    n = len(window) // count
    return [window[i : i + n] for i in range(0, len(window), n)]


def _offset_dtype(kernel: Sequence[int]) -> torch.dtype:
    positions = 1
    for k in kernel:
        positions *= k
    return torch.uint8 if positions <= 256 else torch.int32


def pooled_like(input: Tensor, window: Sequence[int], ceil_mode: bool, record: int) -> tuple[Tensor, Tensor]:
    """(output, argmax) of input, uninitialised: for fakes."""
    kernel, stride, padding, dilation = parts(window, 4)
    spatial = output_size(input.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    size, channels_last = [*input.shape[:2], *spatial], wants_channels_last(input)
    output = empty(input, size, channels_last)
    if record == NOTHING:
        return output, input.new_empty([0], dtype=torch.uint8)
    dtype = torch.int64 if record == INDICES else _offset_dtype(kernel)
    return output, empty(input, size, channels_last, dtype)


@torch.library.register_fake("convnorm::max_pool_forward")
def _(input, window, ceil_mode, record):
    return pooled_like(input, window, ceil_mode, record)


@torch.library.register_fake("convnorm::max_pool_backward")
def _(grad_output, argmax, input_size, window):
    return empty(grad_output, input_size, wants_channels_last(argmax))


@torch.library.register_fake("convnorm::max_pool_gather")
def _(x, argmax, window):
    return empty(x, argmax.shape, wants_channels_last(argmax))


class MaxPool(Function):
    """(output, argmax) of input."""

    @staticmethod
    def forward(input, window, ceil_mode, record):
        return _ops.max_pool_forward.default(input, window, ceil_mode, record)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        argmax = output[1]
        ctx.window, ctx.input_size = inputs[1], inputs[0].shape
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(argmax)
        ctx.save_for_forward(argmax)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _grad_argmax: None) -> Any:
        if grad_output is None:
            return None, None, None, None
        (argmax,) = ctx.saved_tensors
        return MaxPoolBackward.call(grad_output, argmax, ctx.input_size, ctx.window), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, window, ceil_mode, record):
        x = input.movedim(in_dims[0], 0)
        output, argmax = MaxPool.call(x.flatten(0, 1), window, ceil_mode, record)
        if record == NOTHING:
            return (output.unflatten(0, x.shape[:2]), argmax), (0, None)
        return (output.unflatten(0, x.shape[:2]), argmax.unflatten(0, x.shape[:2])), (0, 0)


class _MaxPoolEager(MaxPool):
    @staticmethod
    def jvp(ctx: Any, d_input, *_):
        (argmax,) = ctx.saved_tensors
        return MaxPoolGather.call(d_input, argmax, ctx.window), None


class MaxPoolBackward(Function):
    """grad_input: every gradient at the position its window recorded."""

    @staticmethod
    def forward(grad_output, argmax, input_size, window):
        return _ops.max_pool_backward.default(grad_output, argmax, input_size, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _grad_output, argmax, ctx.input_size, ctx.window = inputs
        ctx.save_for_backward(argmax)
        ctx.save_for_forward(argmax)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (argmax,) = ctx.saved_tensors
        return MaxPoolGather.call(grad, argmax, ctx.window), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output, argmax, input_size, window):
        g, a = (
            move_batch(t, d, info.batch_size) for t, d in zip((grad_output, argmax), in_dims[:2], strict=True)
        )
        n, *rest = input_size
        out = MaxPoolBackward.call(g.flatten(0, 1), a.flatten(0, 1), [info.batch_size * n, *rest], window)
        return out.unflatten(0, (info.batch_size, n)), 0


class _MaxPoolBackwardEager(MaxPoolBackward):
    @staticmethod
    def jvp(ctx: Any, d_grad_output, *_):
        (argmax,) = ctx.saved_tensors
        return MaxPoolBackward.call(d_grad_output, argmax, ctx.input_size, ctx.window)


class MaxPoolGather(Function):
    """The values of x at the recorded positions."""

    @staticmethod
    def forward(x, argmax, window):
        return _ops.max_pool_gather.default(x, argmax, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, argmax, ctx.window = inputs
        ctx.input_size = x.shape
        ctx.save_for_backward(argmax)
        ctx.save_for_forward(argmax)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (argmax,) = ctx.saved_tensors
        return MaxPoolBackward.call(grad, argmax, ctx.input_size, ctx.window), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x, argmax, window):
        size = info.batch_size
        x, a = (move_batch(t, d, size) for t, d in zip((x, argmax), in_dims[:2], strict=True))
        out = MaxPoolGather.call(x.flatten(0, 1), a.flatten(0, 1), window)
        return out.unflatten(0, (size, -1)), 0


class _MaxPoolGatherEager(MaxPoolGather):
    @staticmethod
    def jvp(ctx: Any, d_x, *_):
        (argmax,) = ctx.saved_tensors
        return MaxPoolGather.call(d_x, argmax, ctx.window)


MaxPool.eager, MaxPoolBackward.eager, MaxPoolGather.eager = (
    _MaxPoolEager,
    _MaxPoolBackwardEager,
    _MaxPoolGatherEager,
)
