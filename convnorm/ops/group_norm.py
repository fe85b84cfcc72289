"""Group norm: fakes and autograd for convnorm::group_norm_forward and _backward.

``stats`` is float64 ``(2, N, groups)``: mean and biased variance.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false

from . import _sample_norm
from ._batch_norm_backward import fold, fold_vector, unfold
from ._fake import empty, wants_channels_last
from ._function import Function
from ._norm_arithmetic import Terms, View

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
    grad_input = _dense_like(input) if want_input else input.new_empty([0])
    return _sample_norm.fake_gradients(grad_input, input, weight, bias, [input.shape[1] if want_affine else 0])


def _terms(input: Tensor, weight: Tensor | None, stats: Tensor, groups: int, eps: float) -> Terms:
    n, c = input.shape[:2]
    depth, inner = c // groups, math.prod(input.shape[2:])
    view = View(full=[n, groups, depth, inner], params=[1, groups, depth, 1], over=[2, 3], batch=[0, 3])
    return Terms(view, input, weight, stats, eps)


class GroupNormBackward(Function):
    """(grad_input, grad_weight, grad_bias); the ones that are not wanted are empty."""

    @staticmethod
    def forward(grad_output, input, weight, bias, stats, groups, eps, want_input, want_affine):
        wants = want_input, want_affine
        return _ops.group_norm_backward.default(grad_output, input, groups, weight, bias, stats, eps, *wants)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _sample_norm.save_backward(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, to_input: Tensor, to_weight: Tensor, to_bias: Tensor) -> Any:
        return _sample_norm.gradients_of_backward(ctx, _terms, to_input, to_weight, to_bias)

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
        return _sample_norm.tangents_of_backward(
            ctx, _terms, ctx.saved_tensors[1].shape[1:2], d_grad, d_input, d_weight
        )


class GroupNorm(Function):
    """(out, stats): out = weight xhat + bias, with statistics of each group of an image's channels."""

    @staticmethod
    def forward(input, groups, weight, bias, eps):
        return _ops.group_norm_forward.default(input, groups, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _sample_norm.save(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: Any) -> Any:
        return _sample_norm.gradients(ctx, GroupNormBackward, grad_output)

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
        return _sample_norm.tangents(ctx, _terms, d_input, d_weight, d_bias)


GroupNormBackward.eager, GroupNorm.eager = _GroupNormBackwardEager, _GroupNormEager


def update_running(running: Tensor, batch: Tensor, factor: float, momentum: float) -> None:
    """running = (1 - momentum) running + momentum * factor * the mean over images of ``batch``, in place."""
    running.copy_((1 - momentum) * running + (momentum * factor) * batch.mean(0))
