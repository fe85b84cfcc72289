"""Convolution with its bias, a residual and ReLU in one pass, for inference: convnorm::conv_act.

    out = act(conv(input) + residual)

The op writes the result once and keeps nothing, so it has no derivative: where one may be asked for, the same is
composed of ops that have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._packs import Packs
from ._fake import empty, same_kind, wants_channels_last
from ._function import derivative_wanted
from .conv import Conv, output_size

_ops = torch.ops.convnorm


def _check_residual(op: str, residual: Tensor, size: Sequence[int], like: Tensor) -> None:
    """conv.cpp's own checks, for results that it does not compute."""
    if list(residual.shape) != list(size):
        raise RuntimeError(f"{op}: residual of size {tuple(residual.shape)} must be {tuple(size)}")
    same_kind(op, like, residual)


@torch.library.register_fake("convnorm::conv_act")
def _(input, weight, bias, residual, stride, padding, dilation, groups, relu, packed=None):
    same_kind("conv_act", input, weight, bias, residual)
    out = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    size = [input.shape[0], weight.shape[0], *out]
    if residual is not None:
        _check_residual("conv_act", residual, size, input)
    return empty(input, size, wants_channels_last(input, weight))


@torch.library.register_fake("convnorm::conv_pack")
def _(input, weight, stride, padding, dilation, groups):
    same_kind("conv_pack", input, weight)
    output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return input.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)  # the kernel decides


def conv_act(
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int], int],
    relu: bool,
    packs: Packs | None = None,
) -> Tensor:
    """The one op, or where a derivative may be asked for, convolution, sum and ReLU.

    ``operands`` are input, weight, bias and residual; ``geometry`` ends with groups. ``packs`` keep the weight packed.
    """
    input, weight, bias, residual = operands
    if not any(t is not None and derivative_wanted(t) for t in operands):
        packed = None if packs is None else packs.find(input, weight, geometry)
        return _ops.conv_act(input, weight, bias, residual, *geometry, relu, packed)
    out = Conv.call(input, weight, bias, *geometry)
    if residual is not None:
        _check_residual("conv_act", residual, out.shape, out)
        out = out + residual
    return out.relu() if relu else out
