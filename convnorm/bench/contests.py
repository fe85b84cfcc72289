"""What is compared: for each problem the same work by convnorm and by torch, and its cost in flops and bytes.

A contest's players are callables without arguments. ``bytes`` are the fewest that the operation must move:
every operand once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional as CF
from .players import contest
from .problem import WORKLOADS, Contest, Problem, random, read, size
from .work import arithmetic, window_size

Room = Callable[[Problem, str, torch.dtype], Iterator[Contest]]


def spatial(problem: Problem) -> int:
    """How many spatial dimensions the input has."""
    return len(problem.shapes[0]) - 2


# --- one generator per workload file ------------------------------------------------------------------------


def conv(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    x, w = (random(shape, dtype, layout) for shape in problem.shapes)
    operands = {"input": x, "weight": w, "bias": random((w.shape[0],), dtype, layout)}
    name = f"conv{x.dim() - 2}d"
    ours, theirs = (lambda m=m, **t: getattr(m, name)(**t, **problem.arguments) for m in (CF, F))
    out = theirs(**operands)
    flops = 2.0 * out.numel() * math.prod(w.shape[1:])
    moved = size(x, w, out)
    yield contest("conv", problem, layout, operands, ours, theirs, flops, moved, "inference")
    yield contest("conv_backward", problem, layout, operands, ours, theirs, 2 * flops, 2 * moved, "backward")


def pool(op: str, name: str, problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    """Forward while autograd records, and backward, of a function of one tensor."""
    operands = {"input": random(problem.shapes[0], dtype, layout)}
    ours, theirs = (lambda m=m, **t: getattr(m, name)(**t, **problem.arguments) for m in (CF, F))
    x, out = operands["input"], theirs(**operands)
    moved = size(x, out)
    work = arithmetic(op, x.numel(), out.numel(), window_size(problem.arguments, spatial(problem)))
    yield contest(op, problem, layout, operands, ours, theirs, work, moved, "training")
    yield contest(f"{op}_backward", problem, layout, operands, ours, theirs, work, moved, "backward")


def max_pool(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    yield from pool("max_pool", f"max_pool{spatial(problem)}d", problem, layout, dtype)


def avg_pool(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    name = "adaptive_avg_pool" if "output_size" in problem.arguments else "avg_pool"
    yield from pool("avg_pool", f"{name}{spatial(problem)}d", problem, layout, dtype)


def adaptive_max_pool(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    yield from pool("adaptive_max_pool", f"adaptive_max_pool{spatial(problem)}d", problem, layout, dtype)


def max_unpool(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    n, c, *positions = problem.shapes[0]
    k, dims = problem.arguments["kernel_size"], spatial(problem)
    whole = random((n, c, *(k * p for p in positions)), dtype, layout)
    pooled, indices = getattr(F, f"max_pool{dims}d")(whole, **problem.arguments, return_indices=True)
    name = f"max_unpool{dims}d"
    ours, theirs = (lambda m=m, **t: getattr(m, name)(**t, indices=indices, **problem.arguments) for m in (CF, F))
    moved, work = size(pooled, indices, whole), arithmetic("max_unpool", pooled.numel(), whole.numel())
    yield contest("max_unpool", problem, layout, {"input": pooled}, ours, theirs, work, moved, "inference")
    yield contest("max_unpool_backward", problem, layout, {"input": pooled}, ours, theirs, work, moved, "backward")


def batch_norm(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    x = random(problem.shapes[0], dtype, layout)
    c = x.shape[1]
    kept = torch.promote_types(dtype, torch.float32)  # parameters and statistics, as under autocast
    operands = {"input": x, "weight": random((c,), kept, layout), "bias": random((c,), kept, layout)}
    mean, var = torch.zeros(c), torch.ones(c)

    def call(module: Any, training: bool, relu: bool) -> Callable[..., Tensor]:
        def run(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            m, v = (mean, var) if input.dtype != torch.float64 else (mean.double(), var.double())
            if relu and module is CF:
                return CF.batch_norm_act(input, m, v, weight, bias, training, act="relu")
            out = module.batch_norm(input, m, v, weight, bias, training)
            return F.relu(out) if relu else out

        return run

    def rows(op: str, bytes: int, mode: str, relu: bool = False) -> Contest:
        ours, theirs = (call(m, mode != "inference", relu) for m in (CF, F))
        work = arithmetic(op, x.numel(), x.numel())
        return contest(op, problem, layout, operands, ours, theirs, work, bytes, mode)

    yield rows("batch_norm", 2 * size(x), "training")
    yield rows("batch_norm_relu", 2 * size(x), "training", relu=True)
    yield rows("batch_norm_backward", 3 * size(x), "backward")
    yield rows("batch_norm_relu_backward", 3 * size(x), "backward", relu=True)
    yield rows("batch_norm_eval", 2 * size(x), "inference")


def batch_norm_max_pool(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    """Batch norm in training, relu and max pooling: one call, and torch's three."""
    x = random(problem.shapes[0], dtype, layout)
    c, dims = x.shape[1], spatial(problem)
    operands = {"input": x, "weight": random((c,), dtype, layout), "bias": random((c,), dtype, layout)}

    def ours(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return CF.batch_norm_act_max_pool(input, None, None, weight, bias, training=True, **problem.arguments)

    def theirs(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.relu(F.batch_norm(input, None, None, weight, bias, training=True))
        return getattr(F, f"max_pool{dims}d")(y, **problem.arguments)

    out = theirs(**operands)
    window = window_size(problem.arguments, dims)
    work = arithmetic("batch_norm_relu", x.numel(), x.numel()) + arithmetic("max_pool", x.numel(), out.numel(), window)
    op, moved = "batch_norm_max_pool", size(x, out)
    yield contest(op, problem, layout, operands, ours, theirs, work, moved, "training")
    moved += size(x)
    yield contest(f"{op}_backward", problem, layout, operands, ours, theirs, 2 * work, moved, "backward")


def sample_norm(op: str, problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    """Layer, group and instance norm: the forward, and the gradients of input, weight and bias."""
    x = random(problem.shapes[0], dtype, layout)
    shape = (x.shape[-1] if op == "layer_norm" else x.shape[1],)
    operands = {"input": x, "weight": random(shape, dtype, layout), "bias": random(shape, dtype, layout)}
    rest = {"normalized_shape": shape} if op == "layer_norm" else problem.arguments
    ours, theirs = (lambda m=m, **t: getattr(m, op)(**t, **rest) for m in (CF, F))
    work = arithmetic(op, x.numel(), x.numel())
    yield contest(op, problem, layout, operands, ours, theirs, work, 2 * size(x), "inference")
    yield contest(f"{op}_backward", problem, layout, operands, ours, theirs, 2 * work, 3 * size(x), "backward")


ROOMS: dict[str, Room] = {
    "conv": conv,
    "max_pool": max_pool,
    "adaptive_max_pool": adaptive_max_pool,
    "max_unpool": max_unpool,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "batch_norm_max_pool": batch_norm_max_pool,
}
ROOMS |= {op: functools.partial(sample_norm, op) for op in ("layer_norm", "group_norm", "instance_norm")}


def problems(op: str) -> list[Problem]:
    """convnorm's own workload of an op: the problems of ``workloads/<op>.txt``."""
    return [problem for _, problem in read(WORKLOADS / f"{op}.txt", ROOMS)]
