"""Batch norm: fakes and autograd for convnorm::batch_norm_train, _eval, _update and _backward.

``stats`` is float64 ``(2, C)``: mean and biased variance. The running statistics are updated by an op of
their own, so that the Functions here are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false

from ._batch_norm_arithmetic import Terms, forward_tangent
from ._batch_norm_backward import BatchNormBackward, fold, fold_vector, unfold, wanted
from ._fake import empty, wants_channels_last
from ._function import Function, transforms_active

_ops = torch.ops.convnorm


def _dense_like(input: Tensor) -> Tensor:
    if guard_or_false(input.numel() == 0):  # empty tensors keep their strides
        return torch.empty_like(input)
    return empty(input, input.shape, wants_channels_last(input))


@torch.library.register_fake("convnorm::batch_norm_train")
def _(input, weight, bias, residual, eps, relu):
    return _dense_like(input), input.new_empty([2, input.shape[1]], dtype=torch.float64)


@torch.library.register_fake("convnorm::batch_norm_eval")
def _(input, weight, bias, residual, running_mean, running_var, eps, relu):
    return _dense_like(input)


@torch.library.register_fake("convnorm::batch_norm_update")
def _(running_mean, running_var, stats, input, momentum):
    return None


@torch.library.register_fake("convnorm::batch_norm_backward")
def _(grad_output, input, weight, bias, output, stats, eps, train, relu, *wants):
    like_input, like_weight, like_bias, like_residual = wanted(*wants)
    channels = input.shape[1]
    return (
        _dense_like(input) if like_input else input.new_empty([0]),
        input.new_empty([channels * like_weight], dtype=input.dtype if weight is None else weight.dtype),
        input.new_empty([channels * like_bias], dtype=input.dtype if bias is None else bias.dtype),
        _dense_like(input) if like_residual else input.new_empty([0]),
    )


@torch.library.register_fake("convnorm::batch_norm_stats")
def _(input):
    return input.new_empty([2, input.shape[1]], dtype=torch.float64)


@torch.library.register_fake("convnorm::batch_norm_elemt")
def _(input, weight, bias, residual, stats, eps, relu):
    return _dense_like(input)


@torch.library.register_fake("convnorm::batch_norm_backward_reduce")
def _(grad_output, input, weight, bias, output, stats, eps, relu):
    return torch.empty_like(stats)


@torch.library.register_fake("convnorm::batch_norm_backward_elemt")
def _(grad_output, input, weight, bias, output, stats, means, eps, relu, want_input, want_residual):
    return tuple(_dense_like(input) if want else input.new_empty([0]) for want in (want_input, want_residual))


def blend(running: Tensor | None, batch: Tensor, momentum: float | Tensor) -> None:
    """running = (1 - momentum) running + momentum batch, in place; for torch.func and several processes."""
    if running is not None:
        running.copy_((1 - momentum) * running + momentum * batch)


def update_running(
    running_mean: Tensor | None, running_var: Tensor | None, stats: Tensor, input: Tensor, momentum: float
) -> None:
    """running = (1 - momentum) running + momentum batch, in place, with the unbiased variance."""
    if not transforms_active():
        _ops.batch_norm_update(running_mean, running_var, stats, input.detach(), momentum)
    elif input.numel():
        count = input.numel() // input.shape[1]
        blend(running_mean, stats[0], momentum)
        blend(running_var, stats[1] * (count / (count - 1)), momentum)


def gradients(
    grad_output: Tensor, saved: Sequence[Tensor | None], eps: float, train: bool, relu: bool, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients that ``needs`` asks for, of input, weight, bias and residual.

    ``saved`` is (input, weight, bias, output or None, stats). ctx.saved_tensors is for the caller to read, once: a
    checkpointed region unpacks a tensor one time only.
    """
    need_input, need_weight, need_bias, need_residual = needs
    grad_input, grad_weight, grad_bias, grad_residual = BatchNormBackward.call(
        grad_output, *saved, eps, train, relu, need_input, need_weight or need_bias, need_residual and relu
    )
    return (
        grad_input if need_input else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        (grad_residual if relu else grad_output) if need_residual else None,
    )


class BatchNormTrain(Function):
    """(out, stats): out = act(weight xhat + bias + residual) with the statistics of the batch."""

    @staticmethod
    def forward(input, weight, bias, residual, eps, relu):
        return _ops.batch_norm_train.default(input, weight, bias, residual, eps, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, weight, bias, residual, ctx.eps, ctx.relu = inputs
        out, stats = output
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        saved = (input, weight, bias, out if ctx.relu and residual is not None else None, stats)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> Any:
        if grad_output is None:
            return (None,) * 6
        needs = ctx.needs_input_grad[:4]
        return (*gradients(grad_output, ctx.saved_tensors, ctx.eps, True, ctx.relu, needs), None, None)

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, weight, bias, residual, eps, relu):
        x, r = fold(info, input, in_dims[0]), fold(info, residual, in_dims[3])
        w, b = fold_vector(info, weight, in_dims[1]), fold_vector(info, bias, in_dims[2])
        out, stats = BatchNormTrain.call(x, w, b, r, eps, relu)
        return (unfold(info, out, 1), unfold(info, stats, 1)), (1, 1)


class _BatchNormTrainEager(BatchNormTrain):
    @staticmethod
    def jvp(ctx: Any, d_input, d_weight, d_bias, d_residual, *_):
        saved = ctx.saved_tensors
        terms = Terms(saved, ctx.eps, True, ctx.relu)
        return forward_tangent(terms, d_input, d_weight, d_bias, d_residual).to(saved[0].dtype), None


class BatchNormEval(Function):
    """out = act(weight xhat + bias + residual) with given statistics: linear in the input."""

    @staticmethod
    def forward(input, weight, bias, residual, running_mean, running_var, eps, relu):
        return _ops.batch_norm_eval.default(input, weight, bias, residual, running_mean, running_var, eps, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, weight, bias, residual, mean, var, ctx.eps, ctx.relu = inputs
        saved = (input, weight, bias, output if ctx.relu and residual is not None else None, mean, var)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        *saved, mean, var = ctx.saved_tensors
        stats = torch.stack((mean, var)).double()
        needs = ctx.needs_input_grad[:4]
        return (*gradients(grad_output, (*saved, stats), ctx.eps, False, ctx.relu, needs), *(None,) * 4)

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, weight, bias, residual, running_mean, running_var, eps, relu):
        x, r = fold(info, input, in_dims[0]), fold(info, residual, in_dims[3])
        w, b = fold_vector(info, weight, in_dims[1]), fold_vector(info, bias, in_dims[2])
        mean, var = fold_vector(info, running_mean, in_dims[4]), fold_vector(info, running_var, in_dims[5])
        return unfold(info, BatchNormEval.call(x, w, b, r, mean, var, eps, relu), 1), 1


class _BatchNormEvalEager(BatchNormEval):
    @staticmethod
    def jvp(ctx: Any, d_input, d_weight, d_bias, d_residual, *_):
        *saved, mean, var = ctx.saved_tensors
        terms = Terms((*saved, torch.stack((mean, var))), ctx.eps, False, ctx.relu)
        return forward_tangent(terms, d_input, d_weight, d_bias, d_residual).to(saved[0].dtype)


BatchNormTrain.eager, BatchNormEval.eager = _BatchNormTrainEager, _BatchNormEvalEager
