"""Batch norm over the batches of several processes, on torch.distributed's functional collectives.

Forward: each process sums its own values; count, mean and variance of all processes are gathered (float64, 2 C + 1
numbers each) and merged in the order of ranks by the rule of Chan, Golub and LeVeque (1979), so every process gets the
same bits; then it normalises its values. Backward: each process takes its own sums, one all-reduce adds them (2 C
numbers), then it writes its gradient. Empty batches take part with a count of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .functional.norm import batch_norm_act, check_batch_norm
from .ops._batch_norm_arithmetic import Terms
from .ops._batch_norm_backward import second_derivative, wanted
from .ops._function import Function
from .ops.batch_norm import blend

__all__ = ["sync_batch_norm"]

_ops = torch.ops.convnorm


def _name_of_several(process_group: Any) -> str | None:
    """The name of a group of more than one process that this one belongs to; the default group for None."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group: Any = dist.group.WORLD if process_group is None else process_group
    return group.group_name if dist.get_world_size(group) > 1 else None


def _gather(t: Tensor, group: Any) -> Tensor:
    """(n,) of every process -> (processes, n) in the order of ranks."""
    collectives = torch.ops._c10d_functional
    size = dist.distributed_c10d._get_group_size_by_name(group)
    return collectives.wait_tensor(collectives.all_gather_into_tensor(t, size, group)).view(size, -1)


class _Sum(Function):
    """The sum over all processes, on every process; its transpose is itself."""

    @staticmethod
    def forward(t, group):
        collectives = torch.ops._c10d_functional
        return collectives.wait_tensor(collectives.all_reduce(t.contiguous(), "sum", group))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Sum.call(grad, ctx.group), None


def _merge(gathered: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``(2, C)`` and number of values ``(1,)`` of the whole, from count, means and variances
    of each process in one row."""
    count, mean, var = gathered.split([1, (gathered.shape[1] - 1) // 2, (gathered.shape[1] - 1) // 2], dim=1)
    total = count.sum(0)
    share = count / total.clamp(min=1)
    pivot = mean.index_select(0, count.argmax(0))  # differences from a mean close by keep the digits of a far one
    away = torch.where(count > 0, mean - pivot, 0.0)
    middle = (share * away).sum(0)
    spread = torch.where(count > 0, var + (away - middle).square(), 0.0)
    return torch.stack((pivot[0] + middle, (share * spread).sum(0))), total


def _statistics(input: Tensor, group: str) -> tuple[Tensor, Tensor]:
    count = input.numel() // input.shape[1]
    local = _ops.batch_norm_stats(input)
    stats, total = _merge(_gather(torch.cat((local.new_full((1,), count), local.flatten())), group))
    # With two values here there are two in all: only else is there something to wait for and look at.
    if not torch.compiler.is_compiling() and count < 2 and input.device.type != "meta" and total.item() == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got 1 over all processes and input size "
            f"{input.size()} in this one"
        )
    return stats, total


class _GlobalTerms(Terms):
    """Means are over all processes."""

    def __init__(self, saved: Sequence[Tensor | None], total: Tensor, eps: float, relu: bool, group: str):
        self.total, self.group = total, group
        super().__init__(saved, eps, True, relu)

    def mean(self, t: Tensor) -> Tensor:
        return _Sum.call(t.sum(self.dims, keepdim=True), self.group) / self.total.to(t.dtype).clamp(min=1)


class _SyncBackward(Function):
    """(grad_input, grad_weight, grad_bias, grad_residual); the parameters' are the sums of this process alone."""

    @staticmethod
    def forward(grad_output, input, weight, bias, output, stats, total, eps, relu, group, for_input, for_residual):
        operands = grad_output, input, weight, bias, output, stats
        sums = _ops.batch_norm_backward_reduce(*operands, eps, relu)
        means = _Sum.forward(sums, group) / total.clamp(min=1) if for_input else sums
        grads = _ops.batch_norm_backward_elemt(*operands, means, eps, relu, for_input, for_residual)
        dtypes = [(input if t is None else t).dtype for t in (weight, bias)]
        return grads[0], sums[0].to(dtypes[0], copy=True), sums[1].to(dtypes[1], copy=True), grads[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *saved, ctx.eps, ctx.relu, ctx.group, for_input, for_residual = inputs
        ctx.wants = wanted(for_input, True, for_residual)
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, *to_results: Tensor) -> Any:
        *saved, total = ctx.saved_tensors
        terms = _GlobalTerms(saved[1:], total, ctx.eps, ctx.relu, ctx.group)
        return (*second_derivative(terms, saved, ctx.wants, to_results), *(None,) * 9)


class _SyncBatchNorm(Function):
    """(out, stats, total): batch norm with the statistics of the batches of all processes."""

    @staticmethod
    def forward(input, weight, bias, residual, eps, relu, group):
        stats, total = _statistics(input, group)
        return _ops.batch_norm_elemt(input, weight, bias, residual, stats, eps, relu), stats, total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, weight, bias, residual, ctx.eps, ctx.relu, ctx.group = inputs
        out, stats, total = output
        ctx.mark_non_differentiable(stats, total)
        masked_by = out if ctx.relu and residual is not None else None
        ctx.save_for_backward(input, weight, bias, masked_by, stats, total)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> Any:
        needs = ctx.needs_input_grad[:4]
        flags = ctx.eps, ctx.relu, ctx.group, needs[0], needs[3] and ctx.relu
        *grads, grad_residual = _SyncBackward.call(grad_output, *ctx.saved_tensors, *flags)
        grads.append(grad_residual if ctx.relu else grad_output)
        return (*(g if need else None for g, need in zip(grads, needs, strict=True)), None, None, None)


def sync_batch_norm(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
                    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = True,
                    momentum: float = 0.1, eps: float = 1e-05, *, act: str | None = None,
                    residual: Tensor | None = None, process_group: Any = None) -> Tensor:
    """:func:`convnorm.functional.batch_norm_act` as if the batches of all processes were one.

    Every process of the group must call it, in the same order, and its backward too. Batches may differ in size and be
    empty. In evaluation, without a process group and with one process it is ``batch_norm_act`` itself.

    Args:
        input: ``(N, C, ...)``, with the same C, dtype and rank of tensor in every process.
        process_group: a group of torch.distributed (gloo for CPU tensors); None is the default one.
        the others: as :func:`convnorm.functional.batch_norm_act`; the running statistics become the same everywhere.

    The gradients of weight and bias are those of this process's part, which DistributedDataParallel and FSDP then
    average. Derivatives of any order work, forward mode and vmap do not.

    Raises:
        ValueError: one value per channel over all processes in training; else as ``batch_norm_act``.

    Source: :class:`torch.nn.SyncBatchNorm`.

    Example:
        >>> y = convnorm.distributed.sync_batch_norm(x, mean, var, weight, bias)
    """
    group = _name_of_several(process_group) if training else None
    if group is None:
        arguments = input, running_mean, running_var, weight, bias, training, momentum, eps
        return batch_norm_act(*arguments, act=act, residual=residual)
    relu = check_batch_norm(input, running_mean, running_var, training, act)
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None and running.numel() != input.shape[1]:
            raise RuntimeError(f"{name} should contain {input.shape[1]} elements not {running.numel()}")
    out, stats, total = _SyncBatchNorm.call(input, weight, bias, residual, eps, relu, group)
    share = momentum * (total > 0).to(total.dtype)  # nothing is learned from batches that are all empty
    blend(running_mean, stats[0], share)
    blend(running_var, stats[1] * (total / (total - 1).clamp(min=1)), share)
    return out
