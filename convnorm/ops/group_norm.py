"""Group norm: fakes and autograd for convnorm::group_norm_forward and _backward.

``stats`` is float64 ``(2, N, groups)``: mean and biased variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false

from ._batch_norm_backward import fold, fold_vector, unfold
from ._fake import empty, wants_channels_last
from ._function import Function
from ._norm_arithmetic import Terms, View, backward_tangent, backward_transpose, forward_tangent

_ops = torch.ops.convnorm


def _dense_like(input: Tensor) -> Tensor:
    if input.dim() not in (4, 5) or guard_or_false(input.numel() == 0):
        return input.new_empty(input.shape)
    return empty(input, input.shape, wants_channels_last(input))


@torch.library.register_fake("convnorm::group_norm_forward")
def _(input, num_groups, weight, bias, eps):
    return _dense_like(input), input.new_empty([2, input.shape[0], num_groups], dtype=torch.float64)


@torch.library.register_fake("convnorm::group_norm_backward")
def _(grad_output, input, num_groups, weight, bias, stats, eps, want_input, want_affine):
    channels = input.shape[1] if want_affine else 0
    return (
        _dense_like(input) if want_input else input.new_empty([0]),
        input.new_empty([channels], dtype=input.dtype if weight is None else weight.dtype),
        input.new_empty([channels], dtype=input.dtype if bias is None else bias.dtype),
    )


def _terms(input: Tensor, weight: Tensor | None, stats: Tensor, groups: int, eps: float) -> Terms:
    n, c = input.shape[:2]
    depth, inner = c // groups, math.prod(input.shape[2:])
    view = View(full=[n, groups, depth, inner], params=[1, groups, depth, 1], over=[2, 3], batch=[0, 3])
    return Terms(view, input, weight, stats, eps)


def _shaped(results: Sequence[Tensor], likes: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return tuple(
        None if like is None else t.reshape(like.shape).to(like.dtype) for t, like in zip(results, likes, strict=True)
    )


class GroupNormBackward(Function):
    """(grad_input, grad_weight, grad_bias); the ones that are not wanted are empty."""

    @staticmethod
    def forward(grad_output, input, weight, bias, stats, groups, eps, want_input, want_affine):
        return _ops.group_norm_backward(grad_output, input, groups, weight, bias, stats, eps, want_input, want_affine)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *saved, ctx.groups, ctx.eps, ctx.want_input, ctx.want_affine = inputs
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, to_input: Tensor, to_weight: Tensor, to_bias: Tensor) -> Any:
        grad_output, input, weight, _, stats = ctx.saved_tensors
        results = backward_transpose(
            _terms(input, weight, stats, ctx.groups, ctx.eps),
            grad_output,
            to_input if ctx.want_input else None,
            to_weight if ctx.want_affine else None,
            to_bias if ctx.want_affine else None,
        )
        return (*_shaped(results, (grad_output, input, weight)), *(None,) * 6)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output, input, weight, bias, stats, groups, eps, want_input, want_affine):
        g, x = fold(info, grad_output, in_dims[0]), fold(info, input, in_dims[1])
        w, b = fold_vector(info, weight, in_dims[2]), fold_vector(info, bias, in_dims[3])
        s = _fold_stats(info, stats, in_dims[4])
        results = GroupNormBackward.call(g, x, w, b, s, groups * info.batch_size, eps, want_input, want_affine)
        wants = (want_input, want_affine, want_affine)
        dims = [int(t.dim() > 1 and want) for t, want in zip(results, wants, strict=True)]
        return tuple(unfold(info, t, d) for t, d in zip(results, dims, strict=True)), tuple(dims)


def _fold_stats(info: Any, stats: Tensor, dim: int | None) -> Tensor:
    """(b, 2, n, groups) -> (2, n, b*groups)"""
    stats = stats.unsqueeze(0).expand(info.batch_size, *stats.shape) if dim is None else stats.movedim(dim, 0)
    return stats.movedim(0, 2).flatten(2, 3).contiguous()


class _GroupNormBackwardEager(GroupNormBackward):
    @staticmethod
    def jvp(ctx: Any, d_grad, d_input, d_weight, *_):
        grad_output, input, weight, bias, stats = ctx.saved_tensors
        terms = _terms(input, weight, stats, ctx.groups, ctx.eps)
        tangents = backward_tangent(terms, grad_output, d_grad, d_input, d_weight)
        like = input.new_empty(input.shape[1])
        likes = input, like if weight is None else weight, like if bias is None else bias
        wants = (ctx.want_input, ctx.want_affine, ctx.want_affine)
        return tuple(t if want else input.new_zeros(0) for t, want in zip(_shaped(tangents, likes), wants, strict=True))


class GroupNorm(Function):
    """(out, stats): out = weight xhat + bias, with statistics of each group of an image's channels."""

    @staticmethod
    def forward(input, groups, weight, bias, eps):
        return _ops.group_norm_forward(input, groups, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, ctx.groups, weight, bias, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # no zeros for stats
        ctx.save_for_backward(input, weight, bias, output[1])
        ctx.save_for_forward(input, weight, bias, output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: Any) -> Any:
        if grad_output is None:
            return (None,) * 5
        need_input, _, need_weight, need_bias, _ = ctx.needs_input_grad
        grads = GroupNormBackward.call(
            grad_output, *ctx.saved_tensors, ctx.groups, ctx.eps, need_input, need_weight or need_bias
        )
        wanted = [g if need else None for g, need in zip(grads, (need_input, need_weight, need_bias), strict=True)]
        return wanted[0], None, wanted[1], wanted[2], None

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, groups, weight, bias, eps):
        """The mapped dimension becomes part of the channels."""
        x = fold(info, input, in_dims[0])
        w, b = fold_vector(info, weight, in_dims[2]), fold_vector(info, bias, in_dims[3])
        out, stats = GroupNorm.call(x, groups * info.batch_size, w, b, eps)
        return (unfold(info, out, 1), unfold(info, stats, 2)), (1, 2)


class _GroupNormEager(GroupNorm):
    @staticmethod
    def jvp(ctx: Any, d_input, _, d_weight, d_bias, *__):
        input, weight, _, stats = ctx.saved_tensors
        tangent = forward_tangent(_terms(input, weight, stats, ctx.groups, ctx.eps), d_input, d_weight, d_bias)
        return tangent.reshape(input.shape).to(input.dtype), None


GroupNormBackward.eager, GroupNorm.eager = _GroupNormBackwardEager, _GroupNormEager


def update_running(running: Tensor, batch: Tensor, factor: float, momentum: float) -> None:
    """running = (1 - momentum) running + momentum * factor * the mean over images of ``batch``, in place."""
    running.copy_((1 - momentum) * running + (momentum * factor) * batch.mean(0))
