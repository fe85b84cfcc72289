"""Batch norm: fakes and autograd for convnorm::batch_norm_train, _eval, _update and _backward.

``stats`` is float64 ``(2, C)``: mean and biased variance. The running statistics are updated by an op of their own, so
that the Functions here are pure.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._batch_norm_arithmetic import Terms, backward_tangent, backward_transpose, forward_tangent
from ._fake import empty, wants_channels_last
from ._function import Function, move_batch, transforms_active

_ops = torch.ops.convnorm


def _dense_like(input: Tensor) -> Tensor:
    return empty(input, input.shape, wants_channels_last(input))


@torch.library.register_fake("convnorm::batch_norm_train")
def _(input, weight, bias, residual, eps, relu):
    return _dense_like(input), input.new_empty([2, input.shape[1]], dtype=torch.float64)


@torch.library.register_fake("convnorm::batch_norm_eval")
def _(input, weight, bias, residual, running_mean, running_var, eps, relu):
    return _dense_like(input)


@torch.library.register_fake("convnorm::batch_norm_update")
def _(running_mean, running_var, stats, count, momentum):
    return None


@torch.library.register_fake("convnorm::batch_norm_backward")
def _(grad_output, input, weight, bias, output, stats, eps, train, relu, want_input, want_affine, want_residual):
    channels = input.shape[1] if want_affine else 0
    return (
        _dense_like(input) if want_input else input.new_empty([0]),
        input.new_empty([channels], dtype=input.dtype if weight is None else weight.dtype),
        input.new_empty([channels], dtype=input.dtype if bias is None else bias.dtype),
        _dense_like(input) if want_residual else input.new_empty([0]),
    )


def update_running(running_mean: Tensor | None, running_var: Tensor | None, stats: Tensor, count: int,
                   momentum: float) -> None:
    """running = (1 - momentum) running + momentum batch, in place, with the unbiased variance."""
    if not transforms_active():
        _ops.batch_norm_update(running_mean, running_var, stats, count, momentum)
    elif count:
        for running, batch in ((running_mean, stats[0]), (running_var, stats[1] * (count / (count - 1)))):
            if running is not None:
                running.copy_((1 - momentum) * running + momentum * batch)


# vmap: the mapped dimension becomes part of the channels.
def _fold(info: Any, t: Tensor | None, dim: int | None) -> Tensor | None:
    """(b, n, c, ...) -> (n, b*c, ...)"""
    t = move_batch(t, dim, info.batch_size)
    return None if t is None else t.movedim(0, 1).flatten(1, 2)


def _fold_vector(info: Any, t: Tensor | None, dim: int | None) -> Tensor | None:
    """(b, c) -> (b*c,)"""
    t = move_batch(t, dim, info.batch_size)
    return None if t is None else t.flatten()


def _unfold(info: Any, t: Tensor, dim: int) -> Tensor:
    return t.unflatten(dim, (info.batch_size, t.shape[dim] // info.batch_size))


def _backward(ctx: Any, grad_output: Tensor, stats: Tensor, train: bool) -> tuple[Tensor | None, ...]:
    """Gradients for input, weight, bias and residual."""
    input, weight, bias, output = ctx.saved_tensors[:4]
    need_input, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
    results = BatchNormBackward.call(grad_output, input, weight, bias, output, stats, ctx.eps, train, ctx.relu,
                                     need_input, need_weight or need_bias, need_residual and ctx.relu)
    grad_residual = results[3] if ctx.relu else grad_output
    needs = (need_input, need_weight, need_bias, need_residual)
    return tuple(g if need else None for g, need in zip((*results[:3], grad_residual), needs, strict=True))


class BatchNormTrain(Function):
    """(out, stats): out = act(weight xhat + bias + residual) with the statistics of the batch."""

    @staticmethod
    def forward(input, weight, bias, residual, eps, relu):
        return _ops.batch_norm_train(input, weight, bias, residual, eps, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, weight, bias, residual, ctx.eps, ctx.relu = inputs
        out, stats = output
        ctx.mark_non_differentiable(stats)
        saved = (input, weight, bias, out if ctx.relu and residual is not None else None, stats)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Any) -> Any:
        return (*_backward(ctx, grad_output, ctx.saved_tensors[4], True), None, None)

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, weight, bias, residual, eps, relu):
        x, r = _fold(info, input, in_dims[0]), _fold(info, residual, in_dims[3])
        w, b = _fold_vector(info, weight, in_dims[1]), _fold_vector(info, bias, in_dims[2])
        out, stats = BatchNormTrain.call(x, w, b, r, eps, relu)
        return (_unfold(info, out, 1), _unfold(info, stats, 1)), (1, 1)


class _BatchNormTrainEager(BatchNormTrain):
    @staticmethod
    def jvp(ctx: Any, d_input, d_weight, d_bias, d_residual, *_):
        *saved, stats = ctx.saved_tensors
        tangent = forward_tangent(Terms(*saved, stats, ctx.eps, True, ctx.relu), d_input, d_weight, d_bias, d_residual)
        return tangent.to(saved[0].dtype), None


class BatchNormEval(Function):
    """out = act(weight xhat + bias + residual) with given statistics: linear in the input."""

    @staticmethod
    def forward(input, weight, bias, residual, running_mean, running_var, eps, relu):
        return _ops.batch_norm_eval(input, weight, bias, residual, running_mean, running_var, eps, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, weight, bias, residual, mean, var, ctx.eps, ctx.relu = inputs
        saved = (input, weight, bias, output if ctx.relu and residual is not None else None, mean, var)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        stats = torch.stack(ctx.saved_tensors[4:]).double()
        return (*_backward(ctx, grad_output, stats, False), *(None,) * 4)

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, weight, bias, residual, running_mean, running_var, eps, relu):
        x, r = _fold(info, input, in_dims[0]), _fold(info, residual, in_dims[3])
        w, b = _fold_vector(info, weight, in_dims[1]), _fold_vector(info, bias, in_dims[2])
        mean, var = _fold_vector(info, running_mean, in_dims[4]), _fold_vector(info, running_var, in_dims[5])
        return _unfold(info, BatchNormEval.call(x, w, b, r, mean, var, eps, relu), 1), 1


class _BatchNormEvalEager(BatchNormEval):
    @staticmethod
    def jvp(ctx: Any, d_input, d_weight, d_bias, d_residual, *_):
        *saved, mean, var = ctx.saved_tensors
        terms = Terms(*saved, torch.stack((mean, var)), ctx.eps, False, ctx.relu)
        return forward_tangent(terms, d_input, d_weight, d_bias, d_residual).to(saved[0].dtype)


class BatchNormBackward(Function):
    """(grad_input, grad_weight, grad_bias, grad_residual); the ones that are not wanted are empty."""

    @staticmethod
    def forward(grad_output, input, weight, bias, output, stats, eps, train, relu, want_input, want_affine,
                want_residual):
        return _ops.batch_norm_backward(grad_output, input, weight, bias, output, stats, eps, train, relu,
                                        want_input, want_affine, want_residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *saved, ctx.eps, ctx.train, ctx.relu, ctx.want_input, ctx.want_affine, ctx.want_residual = inputs
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, to_input: Tensor, to_weight: Tensor, to_bias: Tensor, to_residual: Tensor) -> Any:
        grad_output, *saved = ctx.saved_tensors
        for_grad, for_input, for_weight = backward_transpose(
            Terms(*saved, ctx.eps, ctx.train, ctx.relu), grad_output, to_input if ctx.want_input else None,
            to_weight if ctx.want_affine else None, to_bias if ctx.want_affine else None,
            to_residual if ctx.want_residual else None)
        weight = saved[1]
        for_weight = None if weight is None or for_weight is None else for_weight.to(weight.dtype)
        return (for_grad.to(grad_output.dtype), for_input.to(saved[0].dtype), for_weight, *(None,) * 9)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output, input, weight, bias, output, stats, *flags):
        g, x, y = (_fold(info, t, d) for t, d in ((grad_output, in_dims[0]), (input, in_dims[1]), (output, in_dims[4])))
        w, b = _fold_vector(info, weight, in_dims[2]), _fold_vector(info, bias, in_dims[3])
        results = BatchNormBackward.call(g, x, w, b, y, _fold(info, stats, in_dims[5]), *flags)
        wants = (flags[-3], flags[-2], flags[-2], flags[-1])
        dims = [int(t.dim() > 1 and want) for t, want in zip(results, wants, strict=True)]
        return tuple(_unfold(info, t, d) for t, d in zip(results, dims, strict=True)), tuple(dims)


class _BatchNormBackwardEager(BatchNormBackward):
    @staticmethod
    def jvp(ctx: Any, d_grad, d_input, d_weight, *_):
        grad_output, *saved = ctx.saved_tensors
        tangents = backward_tangent(Terms(*saved, ctx.eps, ctx.train, ctx.relu), grad_output, d_grad, d_input, d_weight)
        input, weight, bias = saved[:3]
        wants = (ctx.want_input, ctx.want_affine, ctx.want_affine, ctx.want_residual)
        dtypes = [input.dtype if t is None else t.dtype for t in (input, weight, bias, None)]
        return tuple(t.to(dtype) if want else input.new_zeros(0)
                     for t, want, dtype in zip(tangents, wants, dtypes, strict=True))


BatchNormTrain.eager, BatchNormEval.eager = _BatchNormTrainEager, _BatchNormEvalEager
BatchNormBackward.eager = _BatchNormBackwardEager
