"""The arithmetic of folding batch norm into the layer before it, and what takes the batch norm's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn

from ..nn.fused import _BatchNormAct
from ..nn.norm_pooling import _BatchNormActMaxPool
from .activation import become, fuse_act, restoring, take_place

Layer: TypeAlias = nn.modules.conv._ConvNd | nn.Linear
BatchNorm: TypeAlias = nn.modules.batchnorm._BatchNorm
WITH_ACT = (_BatchNormAct, _BatchNormActMaxPool)


def _require_rank(input: Tensor, rank: int) -> None:
    if input.dim() != rank:
        raise ValueError(f"expected {rank}D input (got {input.dim()}D input): this batch norm is folded into the layer "
                         f"before, whose channels are dimension 1 only of a {rank}D output")  # fmt: skip


fx.wrap("_require_rank")


class Folded(nn.Module):
    """What is left of a batch norm that was folded: ``act(input + residual)``, and a check of the rank.

    ``BatchNorm1d`` takes ``(N, C)`` and ``(N, C, L)``, but a linear layer has its channels last: only a 2D output can
    be folded, which the graph does not show, so it is checked on every call.
    """

    def __init__(self, rank: int | None = None, act: str | None = None) -> None:
        super().__init__()
        self.rank, self.act = rank, act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.rank is not None:
            _require_rank(input, self.rank)
        if residual is not None:
            input = input + residual
        return input.relu() if self.act == "relu" else input

    def extra_repr(self) -> str:
        return f"rank={self.rank}, act={self.act!r}"


def dimensions(module: nn.Module) -> int | None:
    """Spatial dimensions of a layer or batch norm; 1 for linear and for BatchNorm1d, None where any is taken."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return len(module.kernel_size)
    known = {nn.Linear: 1, nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
    return next((n for kind, n in known.items() if isinstance(module, kind)), None)


def needed_rank(layer: Layer, norm: BatchNorm) -> int | None:
    """The rank of the layer's output with the channels in dimension 1; None where the batch norm takes no other."""
    if dimensions(norm) not in (1, None):
        return None
    return 2 if isinstance(layer, nn.Linear) else len(layer.kernel_size) + 2


def remainder(layer: Layer, norm: BatchNorm, residual: bool, fused: bool) -> nn.Module:
    """The module that takes the batch norm's place; ``fused``: its residual and activation are the layer's."""
    act = norm.act if isinstance(norm, WITH_ACT) and not fused else None
    rank = needed_rank(layer, norm)
    first: nn.Module | None = nn.ReLU() if act == "relu" else None
    if (residual and not fused) or rank is not None:
        first = Folded(rank, act)
    if isinstance(norm, _BatchNormActMaxPool):
        return norm.pool() if first is None else nn.Sequential(first, norm.pool())
    return first or nn.Identity()


def folded(layer: Layer, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """(weight, bias) of ``norm(layer(x))``: in float64, rounded once to the layer's dtype; the layout is kept.

    ``w' = w * gamma / sqrt(var + eps)`` and ``b' = (b - mean) * gamma / sqrt(var + eps) + beta``, per channel.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    weight = layer.weight.detach()
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    bias = -norm.running_mean.double()
    if layer.bias is not None:
        bias = bias + layer.bias.detach().double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    if getattr(layer, "transposed", False):  # (inputs, outputs / groups, ...): group after group along the inputs
        per_row = scale.view(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1)  # type: ignore
        factor = per_row.reshape(*weight.shape[:2], *(1,) * (weight.dim() - 2))
    else:
        factor = scale.view(-1, *(1,) * (weight.dim() - 1))
    new = torch.empty_like(weight).copy_(weight.double() * factor)
    return new, torch.empty(bias.shape, dtype=weight.dtype, device=weight.device).copy_(bias)


@dataclass(frozen=True)
class Fold:
    """What folding one batch norm changes, by names, since it was found out on a copy of the model."""

    layer: str
    norm: str
    rest: nn.Module  # takes the batch norm's place
    weight: Tensor
    bias: Tensor
    place: str = ""  # where residual and activation are computed with the layer: "layer", "norm"
    act: str | None = None  # there
    apart: str = ""  # why they are not

    def carry_out(self, model: nn.Module) -> Callable[[], None]:
        """Change the modules themselves, so that every reference to them sees it; returns what undoes that."""
        layer, norm = model.get_submodule(self.layer), model.get_submodule(self.norm)
        undo = restoring(layer, norm)
        trained = layer.weight.requires_grad
        for name, value in (("weight", self.weight), ("bias", self.bias)):
            layer._parameters[name] = nn.Parameter(value, requires_grad=trained)  # type: ignore[arg-type]
        if self.place == "norm":
            take_place(norm, layer, self.act)
            return undo
        become(norm, type(self.rest), vars(self.rest.eval()))
        if self.place == "layer":
            fuse_act(layer, self.act)
        return undo
