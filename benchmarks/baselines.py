"""What is compared: for each problem the same work by convnorm and by torch, and its cost in flops and bytes.

A contest's players are callables without arguments. ``bytes`` are the fewest that the operation must move:
every operand once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import convnorm.functional as CF

WORKLOADS = Path(__file__).resolve().parent / "workloads"
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
Operands = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """One line of a workload file."""

    shapes: tuple[tuple[int, ...], ...]
    arguments: dict[str, int]
    source: str

    def __str__(self) -> str:
        shapes = ["x".join(map(str, shape)) for shape in self.shapes]
        return " ".join([*shapes, *(f"{key}={value}" for key, value in self.arguments.items())])


@dataclass(frozen=True)
class Contest:
    """The same work for two players, who return their results (tensors that carry no graph)."""

    op: str
    problem: Problem
    layout: str
    dtype: torch.dtype
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    reference: Callable[[], Any]  # torch on doubles
    flops: float  # 0 where memory is the limit
    bytes: float


def problems(op: str) -> list[Problem]:
    """The problem strings of ``workloads/<op>.txt``: shapes, then key=value, then where they come from."""
    found = []
    for line in (WORKLOADS / f"{op}.txt").read_text().splitlines():
        text, _, source = line.partition("#")
        words = text.split()
        if words:
            shapes = tuple(tuple(map(int, w.split("x"))) for w in words if "=" not in w)
            arguments = {k: int(v) for k, v in (w.split("=") for w in words if "=" in w)}
            found.append(Problem(shapes, arguments, source.strip()))
    return found


def size(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def arranged(t: Tensor, layout: str) -> Tensor:
    return t.contiguous(memory_format=FORMATS[t.dim()]) if layout == "channels_last" and t.dim() in FORMATS else t


def random(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    return arranged(torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype), layout)


def forward_player(function: Callable[..., Tensor], operands: Operands, recording: bool = False) -> Callable[[], Any]:
    """The forward, as in inference, or while autograd records it."""
    if not recording:
        return torch.no_grad()(lambda: function(**operands))
    leaves = {k: v.detach().requires_grad_() for k, v in operands.items()}
    return lambda: function(**leaves)


def backward_player(function: Callable[..., Tensor], operands: Operands, layout: str) -> Callable[[], Any]:
    """The gradients of all operands from a recorded forward, without the forward."""
    leaves = {k: v.detach().requires_grad_() for k, v in operands.items()}
    out = function(**leaves)
    gradient = random(tuple(out.shape), torch.bfloat16, layout).to(out.dtype)
    return lambda: torch.autograd.grad(out, list(leaves.values()), gradient, retain_graph=True)


def contest(
    op: str,
    problem: Problem,
    layout: str,
    operands: Operands,
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    flops: float,
    bytes: float,
    mode: str,
) -> Contest:
    def player(function: Callable[..., Tensor], given: Operands) -> Callable[[], Any]:
        if mode == "backward":
            return backward_player(function, given, layout)
        return forward_player(function, given, recording=mode == "training")

    def reference() -> Any:
        return player(theirs, {k: v.double() for k, v in operands.items()})()

    players = player(ours, operands), player(theirs, operands)
    return Contest(op, problem, layout, operands["input"].dtype, *players, reference, flops, bytes)


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
    moved = size(operands["input"], theirs(**operands))
    yield contest(op, problem, layout, operands, ours, theirs, 0, moved, "training")
    yield contest(f"{op}_backward", problem, layout, operands, ours, theirs, 0, moved, "backward")


def max_pool(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    yield from pool("max_pool", "max_pool2d", problem, layout, dtype)


def avg_pool(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    adaptive = "output_size" in problem.arguments
    yield from pool("avg_pool", "adaptive_avg_pool2d" if adaptive else "avg_pool2d", problem, layout, dtype)


def adaptive_max_pool(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    yield from pool("adaptive_max_pool", "adaptive_max_pool2d", problem, layout, dtype)


def max_unpool(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    n, c, h, w = problem.shapes[0]
    k = problem.arguments["kernel_size"]
    whole = random((n, c, h * k, w * k), dtype, layout)
    pooled, indices = F.max_pool2d(whole, **problem.arguments, return_indices=True)
    operands = {"input": pooled}
    ours, theirs = (lambda m=m, **t: m.max_unpool2d(**t, indices=indices, **problem.arguments) for m in (CF, F))
    moved = size(pooled, indices, whole)
    yield contest("max_unpool", problem, layout, operands, ours, theirs, 0, moved, "inference")
    yield contest("max_unpool_backward", problem, layout, operands, ours, theirs, 0, moved, "backward")


def batch_norm(problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    x = random(problem.shapes[0], dtype, layout)
    c = x.shape[1]
    operands = {"input": x, "weight": random((c,), dtype, layout), "bias": random((c,), dtype, layout)}
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
        return contest(op, problem, layout, operands, ours, theirs, 0, bytes, mode)

    yield rows("batch_norm", 2 * size(x), "training")
    yield rows("batch_norm_relu", 2 * size(x), "training", relu=True)
    yield rows("batch_norm_backward", 3 * size(x), "backward")
    yield rows("batch_norm_relu_backward", 3 * size(x), "backward", relu=True)
    yield rows("batch_norm_eval", 2 * size(x), "inference")


def sample_norm(op: str, problem: Problem, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    """Layer, group and instance norm: the forward, and the gradients of input, weight and bias."""
    x = random(problem.shapes[0], dtype, layout)
    shape = (x.shape[-1] if op == "layer_norm" else x.shape[1],)
    operands = {"input": x, "weight": random(shape, dtype, layout), "bias": random(shape, dtype, layout)}
    rest = {"normalized_shape": shape} if op == "layer_norm" else problem.arguments
    ours, theirs = (lambda m=m, **t: getattr(m, op)(**t, **rest) for m in (CF, F))
    yield contest(op, problem, layout, operands, ours, theirs, 0, 2 * size(x), "inference")
    yield contest(f"{op}_backward", problem, layout, operands, ours, theirs, 0, 3 * size(x), "backward")


ROOMS = {
    "conv": conv,
    "max_pool": max_pool,
    "adaptive_max_pool": adaptive_max_pool,
    "max_unpool": max_unpool,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
}
ROOMS |= {op: functools.partial(sample_norm, op) for op in ("layer_norm", "group_norm", "instance_norm")}


def layouts(problem: Problem, wanted: list[str]) -> list[str]:
    return [name for name in wanted if name == "contiguous" or len(problem.shapes[0]) in FORMATS]
