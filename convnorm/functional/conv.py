"""Convolutions under torch.nn.functional's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._args import add_batch, autocast_lower, ntuple, require_float
from .._packs import Packs
from ..ops._conv_act import conv_act
from ..ops.conv import Conv

_Size = int | Sequence[int]


def _same_padding(op: str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    if any(s != 1 for s in stride):
        got = tuple(stride)
        raise RuntimeError(f"{op}: padding='same' is not supported for strided convolutions, got stride {got}")
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]


def conv_geometry(
    op: str, kernel: Sequence[int], stride: _Size, padding: str | _Size, dilation: _Size
) -> tuple[list[int], list[int], list[int]]:
    """(stride, padding, dilation) as the ops take them; padding is all low sides, then all high sides."""
    n = len(kernel)
    strides, dilations = ntuple(op, "stride", stride, n), ntuple(op, "dilation", dilation, n)
    if not isinstance(padding, str):
        pads = ntuple(op, "padding", padding, n) * 2
    elif padding == "same":
        pads = _same_padding(op, kernel, strides, dilations)
    elif padding == "valid":
        pads = [0] * (2 * n)
    else:
        raise RuntimeError(f"{op}: padding {padding!r} must be 'same', 'valid', an int or {n} ints")
    return strides, pads, dilations


def _check_dimensions(op: str, n: int, input: Tensor, weight: Tensor) -> None:
    require_float(op, "input", input)
    if weight.dim() != n + 2:
        raise RuntimeError(f"{op}: weight of size {list(weight.shape)} must have {n + 2} dimensions")


def _conv(op: str, n: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: _Size,
          padding: str | _Size, dilation: _Size, groups: int) -> Tensor:
    _check_dimensions(op, n, input, weight)
    geometry = conv_geometry(op, weight.shape[2:], stride, padding, dilation)
    x, unbatched = add_batch(op, input, n)
    out = Conv.call(*autocast_lower(input.device, x, weight, bias), *geometry, groups)
    return out.squeeze(0) if unbatched else out


def conv1d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: _Size = 1,
           padding: str | _Size = 0, dilation: _Size = 1, groups: int = 1) -> Tensor:
    """1d convolution (cross-correlation); see :func:`conv2d`, with one spatial dimension."""
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: _Size = 1,
           padding: str | _Size = 0, dilation: _Size = 1, groups: int = 1) -> Tensor:
    """2d convolution as deep learning means it: cross-correlation, no flip of the filter.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float32, float64, bfloat16 or float16; any strides.
            channels_last input (or weight) gives channels_last output.
        weight: ``(K, C / groups, kH, kW)``.
        bias: ``(K,)`` or None.
        stride, dilation: int or 2 ints, >= 1.
        padding: int or 2 ints >= 0 (zeros on both sides), ``'valid'`` or ``'same'``.
        groups: divides C and K.

    Returns:
        ``(N, K, H', W')`` with ``H' = floor((H + 2*padding - dilation*(kH-1) - 1) / stride) + 1``.

    Raises:
        RuntimeError: shapes, dtypes, devices or arguments that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    Source: :func:`torch.nn.functional.conv2d`, whose answers this reproduces.

    Example:
        >>> convnorm.functional.conv2d(torch.randn(1, 3, 32, 32), torch.randn(10, 3, 5, 5), padding=2).shape
        torch.Size([1, 10, 32, 32])
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: _Size = 1,
           padding: str | _Size = 0, dilation: _Size = 1, groups: int = 1) -> Tensor:
    """3d convolution (cross-correlation); see :func:`conv2d`, with three spatial dimensions (D, H, W)."""
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


def _conv_act(op: str, n: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: _Size,
              padding: str | _Size, dilation: _Size, groups: int, residual: Tensor | None, act: str | None,
              packs: Packs | None = None) -> Tensor:
    _check_dimensions(op, n, input, weight)
    if act not in ("relu", None):
        raise ValueError(f"{op}: act {act!r} must be 'relu' or None")
    geometry = conv_geometry(op, weight.shape[2:], stride, padding, dilation)
    x, unbatched = add_batch(op, input, n)
    if unbatched and residual is not None:
        residual = residual.unsqueeze(0)
    operands: Any = autocast_lower(input.device, x, weight, bias, residual)
    if operands[1] is not weight:  # a copy that autocast made for this call
        packs = None
    out = conv_act(operands, (*geometry, groups), act == "relu", packs)
    return out.squeeze(0) if unbatched else out


frozen_conv = _conv_act  # for modules, which keep packs: act and residual may be None


def conv1d_act(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: _Size = 1,
               padding: str | _Size = 0, dilation: _Size = 1, groups: int = 1, *, residual: Tensor | None = None,
               act: str | None = "relu") -> Tensor:
    """``act(conv1d(input) + residual)`` in one pass; see :func:`conv2d_act`, with one spatial dimension."""
    return _conv_act("conv1d_act", 1, input, weight, bias, stride, padding, dilation, groups, residual, act)


def conv2d_act(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: _Size = 1,
               padding: str | _Size = 0, dilation: _Size = 1, groups: int = 1, *, residual: Tensor | None = None,
               act: str | None = "relu") -> Tensor:
    """``act(conv2d(input) + residual)`` in one pass: the output is written once, from registers. For inference.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as :func:`conv2d`.
        residual: of the output's shape and of input's dtype, in any layout (the output's needs no copy), or None.
            Under autocast it is cast as the others are.
        act: ``"relu"`` (NaN stays NaN) or None.

    Returns:
        As :func:`conv2d`. Of 16-bit tensors the sum and the clipping are in float32, rounded once.

    Where a derivative may be asked for (a tensor requires gradients while they are recorded, or :mod:`torch.func`)
    it is composed of :func:`conv2d`, a sum and ReLU, with gradients of any order; 16-bit results are then rounded
    after each of the three.

    Raises:
        ValueError: act is unknown.
        RuntimeError, NotImplementedError: as :func:`conv2d`; a residual of another shape, dtype or device.

    Source: :func:`torch.nn.functional.conv2d`, ``+`` and :func:`torch.relu`, whose answers this reproduces.

    Example:
        >>> shortcut = torch.randn(1, 10, 32, 32)
        >>> x, w = torch.randn(1, 3, 32, 32), torch.randn(10, 3, 5, 5)
        >>> convnorm.functional.conv2d_act(x, w, padding=2, residual=shortcut).min() >= 0
        tensor(True)
    """
    return _conv_act("conv2d_act", 2, input, weight, bias, stride, padding, dilation, groups, residual, act)


def conv3d_act(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: _Size = 1,
               padding: str | _Size = 0, dilation: _Size = 1, groups: int = 1, *, residual: Tensor | None = None,
               act: str | None = "relu") -> Tensor:
    """``act(conv3d(input) + residual)`` in one pass; see :func:`conv2d_act`, with three spatial dimensions."""
    return _conv_act("conv3d_act", 3, input, weight, bias, stride, padding, dilation, groups, residual, act)
