"""The backward of batch norm as a Function of its own, and the vmap folding it shares with the forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._batch_norm_arithmetic import Terms, backward_tangent, backward_transpose
from ._function import Function, move_batch

_ops = torch.ops.convnorm


# vmap: the mapped dimension becomes part of the channels.
def fold(info: Any, t: Tensor | None, dim: int | None) -> Tensor | None:
    """(b, n, c, ...) -> (n, b*c, ...)"""
    t = move_batch(t, dim, info.batch_size)
    return None if t is None else t.movedim(0, 1).flatten(1, 2)


def fold_vector(info: Any, t: Tensor | None, dim: int | None) -> Tensor | None:
    """(b, c) -> (b*c,)"""
    t = move_batch(t, dim, info.batch_size)
    return None if t is None else t.flatten()


def unfold(info: Any, t: Tensor, dim: int) -> Tensor:
    return t.unflatten(dim, (info.batch_size, t.shape[dim] // info.batch_size))


def wanted(want_input: bool, want_affine: bool, want_residual: bool) -> tuple[bool, bool, bool, bool]:
    """Which results the backward gives, in their order; the op's last three arguments say so."""
    return want_input, want_affine, want_affine, want_residual


def second_derivative(
    terms: Terms, saved: Sequence[Tensor | None], wants: Sequence[bool], to_results: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients for grad_output, input and weight, first in ``saved``, from those of the backward's results."""
    grad_output, input, weight = saved[:3]
    assert grad_output is not None
    asked = (t if want else None for t, want in zip(to_results, wants, strict=True))
    gradients = backward_transpose(terms, grad_output, *asked)
    pairs = zip(gradients, (grad_output, input, weight), strict=True)
    return tuple(None if g is None or t is None else g.to(t.dtype) for g, t in pairs)


class BatchNormBackward(Function):
    """(grad_input, grad_weight, grad_bias, grad_residual); the ones that are not wanted are empty."""

    @staticmethod
    def forward(grad_output, input, weight, bias, output, stats, eps, train, relu, for_input, for_affine, for_residual):
        flags = train, relu, for_input, for_affine, for_residual  # Dynamo takes no *flags here
        return _ops.batch_norm_backward.default(grad_output, input, weight, bias, output, stats, eps, *flags)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        saved, (ctx.eps, ctx.train, ctx.relu), wants = inputs[:6], inputs[6:9], inputs[9:]
        ctx.wants = wanted(*wants)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *to_results: Tensor) -> Any:
        terms = Terms(ctx.saved_tensors[1:], ctx.eps, ctx.train, ctx.relu)
        return (*second_derivative(terms, ctx.saved_tensors, ctx.wants, to_results), *(None,) * 9)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output, input, weight, bias, output, stats, *flags):
        g, x, y = (
            fold(info, t, d)
            for t, d in ((grad_output, in_dims[0]), (input, in_dims[1]), (output, in_dims[4]))
        )
        w, b = fold_vector(info, weight, in_dims[2]), fold_vector(info, bias, in_dims[3])
        results = BatchNormBackward.call(g, x, w, b, y, fold(info, stats, in_dims[5]), *flags)
        dims = [int(t.dim() > 1 and want) for t, want in zip(results, wanted(*flags[-3:]), strict=True)]
        return tuple(unfold(info, t, d) for t, d in zip(results, dims, strict=True)), tuple(dims)


class _BatchNormBackwardEager(BatchNormBackward):
    @staticmethod
    def jvp(ctx: Any, d_grad, d_input, d_weight, *_):
        grad_output, *saved = ctx.saved_tensors
        tangents = backward_tangent(
            Terms(saved, ctx.eps, ctx.train, ctx.relu), grad_output, d_grad, d_input, d_weight
        )
        input, weight, bias = saved[:3]
        dtypes = [input.dtype if t is None else t.dtype for t in (input, weight, bias, None)]
        return tuple(
            t.to(dtype) if want else input.new_zeros(0)
            for t, want, dtype in zip(tangents, ctx.wants, dtypes, strict=True)
        )


BatchNormBackward.eager = _BatchNormBackwardEager
