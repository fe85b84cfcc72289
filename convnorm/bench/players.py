"""The two players of a contest, as it is timed: a forward, a forward that autograd records, or a backward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .problem import Contest, Forward, Problem, gradient_for

Operands = dict[str, Tensor]


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
    gradient = gradient_for(out, layout)
    return lambda: torch.autograd.grad(out, list(leaves.values()), gradient, retain_graph=True)


class Called(nn.Module):
    """A function of an input and of operands that are its parameters."""

    def __init__(self, function: Callable[..., Tensor], operands: Operands, recording: bool) -> None:
        super().__init__()
        fixed = {k: nn.Parameter(v, requires_grad=recording) for k, v in operands.items()}
        self.function, self.operands = function, nn.ParameterDict(fixed)

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input=input, **self.operands)


def called(function: Callable[..., Tensor], operands: Operands, recording: bool) -> Forward:
    """The forward for peers, with all operands but the input as parameters."""
    fixed = dict(operands)
    given = fixed.pop("input").detach().requires_grad_(recording)
    return Forward(Called(function, fixed, recording), [given], recording)


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
    forward = None if mode == "backward" else functools.partial(called, theirs, operands, mode == "training")
    dtype = operands["input"].dtype
    unit = "GFLOP/s" if op.startswith("conv") else "GB/s"
    return Contest(op, problem, layout, dtype, *players, reference, flops, bytes, unit, forward=forward)
