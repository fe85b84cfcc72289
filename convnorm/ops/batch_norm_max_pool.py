"""Batch norm, relu and max pooling in one pass: fakes and autograd for convnorm::batch_norm_max_pool_*.

Kept are x, and where each maximum was. Other derivatives go through the parts: a tangent is picked from that of the
normalised image, and a second derivative is batch norm's, of a gradient that max pooling's backward spreads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._batch_norm_arithmetic import Terms, backward_tangent, forward_tangent
from ._batch_norm_backward import fold, fold_vector, second_derivative, unfold
from ._fake import empty, wants_channels_last
from ._function import Function
from .max_pool import NOTHING, MaxPoolBackward, MaxPoolGather, pooled_like

_ops = torch.ops.convnorm


@torch.library.register_fake("convnorm::batch_norm_max_pool_train")
def _(input, weight, bias, eps, relu, window, ceil_mode, record):
    stats = input.new_empty([2, input.shape[1]], dtype=torch.float64)
    return *pooled_like(input, window, ceil_mode, record), stats


@torch.library.register_fake("convnorm::batch_norm_max_pool_eval")
def _(input, weight, bias, running_mean, running_var, eps, relu, window, ceil_mode, record):
    return pooled_like(input, window, ceil_mode, record)


@torch.library.register_fake("convnorm::batch_norm_max_pool_backward")
def _(grad_output, argmax, input, weight, bias, stats, eps, train, relu, window, want_input, want_affine):
    channels = input.shape[1] * want_affine
    return (
        empty(input, input.shape, wants_channels_last(input)) if want_input else input.new_empty([0]),
        input.new_empty([channels], dtype=input.dtype if weight is None else weight.dtype),
        input.new_empty([channels], dtype=input.dtype if bias is None else bias.dtype),
    )


def _gradients(ctx: Any, grad_output: Tensor, argmax: Tensor, saved: tuple[Any, ...], train: bool) -> tuple[Any, ...]:
    """Those of input, weight and bias that are asked for."""
    need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
    flags = ctx.eps, train, ctx.relu, ctx.window, need_input, need_weight or need_bias
    found = BatchNormMaxPoolBackward.call(grad_output, argmax, *saved, *flags)
    return tuple(g if need else None for g, need in zip(found, ctx.needs_input_grad[:3], strict=True))


def _tangent(ctx: Any, argmax: Tensor, saved: tuple[Any, ...], train: bool, tangents: tuple[Any, ...]) -> Tensor:
    input, weight, bias, stats = saved
    terms = Terms((input, weight, bias, None, stats), ctx.eps, train, ctx.relu)
    tangent = forward_tangent(terms, *tangents)
    return MaxPoolGather.call(tangent.to(input.dtype), argmax, ctx.window)


def _fold_operands(info: Any, in_dims: Any, input: Tensor, *vectors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The mapped dimension becomes part of the channels."""
    dims = in_dims[1 : 1 + len(vectors)]
    return fold(info, input, in_dims[0]), *(fold_vector(info, v, d) for v, d in zip(vectors, dims, strict=True))


def _unfold_pooled(info: Any, out: Tensor, argmax: Tensor, record: int) -> tuple[Any, Any]:
    if record == NOTHING:
        return (unfold(info, out, 1), argmax), (1, None)
    return (unfold(info, out, 1), unfold(info, argmax, 1)), (1, 1)


class BatchNormMaxPoolTrain(Function):
    """(out, argmax, stats): out = max_pool(act(weight xhat + bias)) with the statistics of the batch."""

    @staticmethod
    def forward(input, weight, bias, eps, relu, window, ceil_mode, record):
        return _ops.batch_norm_max_pool_train.default(input, weight, bias, eps, relu, window, ceil_mode, record)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, weight, bias, ctx.eps, ctx.relu, ctx.window, _, _ = inputs
        _, argmax, stats = output
        ctx.mark_non_differentiable(argmax, stats)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(argmax, input, weight, bias, stats)
        ctx.save_for_forward(argmax, input, weight, bias, stats)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> Any:
        if grad_output is None:
            return (None,) * 8
        argmax, *saved = ctx.saved_tensors
        return (*_gradients(ctx, grad_output, argmax, saved, True), *(None,) * 5)

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, weight, bias, eps, relu, window, ceil_mode, record):
        operands = _fold_operands(info, in_dims, input, weight, bias)
        out, argmax, stats = BatchNormMaxPoolTrain.call(*operands, eps, relu, window, ceil_mode, record)
        pooled, dims = _unfold_pooled(info, out, argmax, record)
        return (*pooled, unfold(info, stats, 1)), (*dims, 1)


class _BatchNormMaxPoolTrainEager(BatchNormMaxPoolTrain):
    @staticmethod
    def jvp(ctx: Any, d_input, d_weight, d_bias, *_):
        argmax, *saved = ctx.saved_tensors
        return _tangent(ctx, argmax, saved, True, (d_input, d_weight, d_bias, None)), None, None


class BatchNormMaxPoolEval(Function):
    """(out, argmax): out = max_pool(act(weight xhat + bias)) with given statistics."""

    @staticmethod
    def forward(input, weight, bias, running_mean, running_var, eps, relu, window, ceil_mode, record):
        flags = eps, relu, window, ceil_mode, record
        return _ops.batch_norm_max_pool_eval.default(input, weight, bias, running_mean, running_var, *flags)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, weight, bias, mean, var, ctx.eps, ctx.relu, ctx.window, _, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], input, weight, bias, mean, var)
        ctx.save_for_forward(output[1], input, weight, bias, mean, var)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> Any:
        if grad_output is None:
            return (None,) * 10
        argmax, *saved, mean, var = ctx.saved_tensors
        stats = torch.stack((mean, var)).double()
        return (*_gradients(ctx, grad_output, argmax, (*saved, stats), False), *(None,) * 7)

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, weight, bias, mean, var, eps, relu, window, ceil_mode, record):
        operands = _fold_operands(info, in_dims, input, weight, bias, mean, var)
        out, argmax = BatchNormMaxPoolEval.call(*operands, eps, relu, window, ceil_mode, record)
        return _unfold_pooled(info, out, argmax, record)


class _BatchNormMaxPoolEvalEager(BatchNormMaxPoolEval):
    @staticmethod
    def jvp(ctx: Any, d_input, d_weight, d_bias, *_):
        argmax, *saved, mean, var = ctx.saved_tensors
        saved = (*saved, torch.stack((mean, var)))
        return _tangent(ctx, argmax, saved, False, (d_input, d_weight, d_bias, None)), None


class BatchNormMaxPoolBackward(Function):
    """(grad_input, grad_weight, grad_bias); the ones that are not wanted are empty."""

    @staticmethod
    def forward(grad_output, argmax, input, weight, bias, stats, eps, train, relu, window, for_input, for_affine):
        flags = eps, train, relu, window, for_input, for_affine
        return _ops.batch_norm_max_pool_backward.default(grad_output, argmax, input, weight, bias, stats, *flags)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        saved, (ctx.eps, ctx.train, ctx.relu, ctx.window, for_input, for_affine) = inputs[:6], inputs[6:]
        ctx.wants = for_input, for_affine, for_affine
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *to_results: Tensor) -> Any:
        grad_output, argmax, input, weight, bias, stats = ctx.saved_tensors
        g = MaxPoolBackward.call(grad_output, argmax, input.shape, ctx.window)
        terms = Terms((input, weight, bias, None, stats), ctx.eps, ctx.train, ctx.relu)
        wants, asked = (*ctx.wants, False), (*to_results, g)  # there is no residual to ask for
        to_g, to_input, to_weight = second_derivative(terms, (g, input, weight), wants, asked)
        to_grad_output = None if to_g is None else MaxPoolGather.call(to_g, argmax, ctx.window)
        return (to_grad_output, None, to_input, to_weight, *(None,) * 8)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output, argmax, input, weight, bias, stats, *flags):
        g, a, x = (fold(info, t, d) for t, d in zip((grad_output, argmax, input), in_dims[:3], strict=True))
        w, b = fold_vector(info, weight, in_dims[3]), fold_vector(info, bias, in_dims[4])
        results = BatchNormMaxPoolBackward.call(g, a, x, w, b, fold(info, stats, in_dims[5]), *flags)
        dims = tuple(int(t.dim() > 1) for t in results)
        return tuple(unfold(info, t, d) for t, d in zip(results, dims, strict=True)), dims


class _BatchNormMaxPoolBackwardEager(BatchNormMaxPoolBackward):
    @staticmethod
    def jvp(ctx: Any, d_grad, _, d_input, d_weight, *rest):
        grad_output, argmax, input, weight, bias, stats = ctx.saved_tensors
        spread = (argmax, input.shape, ctx.window)
        terms = Terms((input, weight, bias, None, stats), ctx.eps, ctx.train, ctx.relu)
        g = MaxPoolBackward.call(grad_output, *spread)
        d_g = None if d_grad is None else MaxPoolBackward.call(d_grad, *spread)
        tangents = backward_tangent(terms, g, d_g, d_input, d_weight)
        dtypes = [input.dtype if t is None else t.dtype for t in (input, weight, bias)]
        return tuple(
            t.to(dtype) if want else input.new_zeros(0)
            for t, want, dtype in zip(tangents[:3], ctx.wants, dtypes, strict=True)
        )


BatchNormMaxPoolTrain.eager, BatchNormMaxPoolEval.eager = _BatchNormMaxPoolTrainEager, _BatchNormMaxPoolEvalEager
BatchNormMaxPoolBackward.eager = _BatchNormMaxPoolBackwardEager
