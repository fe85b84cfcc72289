"""The autograd bodies that layer and group norm share.

``over`` says which values share statistics, as the ops take it: the normalized shape, or the number of groups; and
``terms(input, weight, stats, over, eps)`` puts a norm into the shapes of :class:`Terms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._function import Function
from ._norm_arithmetic import Terms, backward_tangent, backward_transpose, forward_tangent

TermsOf = Callable[[Tensor, Tensor | None, Tensor, Any, float], Terms]


def shaped(results: Sequence[Tensor], likes: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return tuple(
        None if like is None else t.reshape(like.shape).to(like.dtype) for t, like in zip(results, likes, strict=True)
    )


def fake_gradients(grad_input: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Any) -> Any:
    """Fakes of a backward's results; parameters that are None get gradients in input's dtype."""
    dtypes = (input.dtype if t is None else t.dtype for t in (weight, bias))
    return (grad_input, *(input.new_empty(shape, dtype=dtype) for dtype in dtypes))


# --- forward: (input, over, weight, bias, eps) -> (out, stats) --------------------------------------------------------


def save(ctx: Any, inputs: Any, output: Any) -> None:
    input, ctx.over, weight, bias, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for stats
    ctx.save_for_backward(input, weight, bias, output[1])
    ctx.save_for_forward(input, weight, bias, output[1])


def gradients(ctx: Any, backward: type[Function], grad_output: Tensor | None) -> Any:
    if grad_output is None:
        return (None,) * 5
    need_input, _, need_weight, need_bias, _ = ctx.needs_input_grad
    grad_input, grad_weight, grad_bias = backward.call(
        grad_output, *ctx.saved_tensors, ctx.over, ctx.eps, need_input, need_weight or need_bias
    )
    return (
        grad_input if need_input else None,
        None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        None,
    )


def tangents(ctx: Any, terms: TermsOf, d_input: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None) -> Any:
    input, weight, _, stats = ctx.saved_tensors
    tangent = forward_tangent(terms(input, weight, stats, ctx.over, ctx.eps), d_input, d_weight, d_bias)
    return tangent.reshape(input.shape).to(input.dtype), None


# --- backward: (grad_output, input, weight, bias, stats, over, eps, want_input, want_affine) --------------------------


def save_backward(ctx: Any, inputs: Any) -> None:
    *saved, ctx.over, ctx.eps, ctx.want_input, ctx.want_affine = inputs
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def gradients_of_backward(ctx: Any, terms: TermsOf, to_input: Tensor, to_weight: Tensor, to_bias: Tensor) -> Any:
    grad_output, input, weight, _, stats = ctx.saved_tensors
    results = backward_transpose(
        terms(input, weight, stats, ctx.over, ctx.eps),
        grad_output,
        to_input if ctx.want_input else None,
        to_weight if ctx.want_affine else None,
        to_bias if ctx.want_affine else None,
    )
    return (*shaped(results, (grad_output, input, weight)), *(None,) * 6)


def tangents_of_backward(
    ctx: Any,
    terms: TermsOf,
    shape: Sequence[int],
    d_grad: Tensor | None,
    d_input: Tensor | None,
    d_weight: Tensor | None,
) -> Any:
    """``shape`` is that of the parameters."""
    grad_output, input, weight, bias, stats = ctx.saved_tensors
    results = backward_tangent(terms(input, weight, stats, ctx.over, ctx.eps), grad_output, d_grad, d_input, d_weight)
    like = input.new_empty(shape)
    likes = input, like if weight is None else weight, like if bias is None else bias
    wants = (ctx.want_input, ctx.want_affine, ctx.want_affine)
    empty = torch.empty(0, dtype=input.dtype, device=input.device)
    return tuple(t if want else empty for t, want in zip(shaped(results, likes), wants, strict=True))
