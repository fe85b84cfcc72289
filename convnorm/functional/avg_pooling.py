"""Average pooling under torch.nn.functional's names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._args import add_batch, autocast_float32, ntuple, require_float
from ..ops.avg_pool import AvgPool

_Size = int | Sequence[int]


def _avg_pool(n: int, input: Tensor, kernel_size: _Size, stride: _Size | None, padding: _Size, ceil_mode: bool,
              count_include_pad: bool, divisor_override: int | None = None) -> Tensor:
    op = f"avg_pool{n}d"
    require_float(op, "input", input)
    kernel = ntuple(op, "kernel_size", kernel_size, n)
    given = stride is not None and (isinstance(stride, (int, torch.SymInt)) or len(stride) > 0)
    strides = ntuple(op, "stride", stride, n) if given else kernel  # type: ignore[arg-type]
    pads = ntuple(op, "padding", padding, n)
    x, unbatched = add_batch(op, autocast_float32("cpu", input)[0] if n == 3 else input, n)
    out = AvgPool.call(x, ([*kernel, *strides, *pads], bool(ceil_mode), bool(count_include_pad), divisor_override))
    return out.squeeze(0) if unbatched else out


def avg_pool1d(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
               ceil_mode: bool = False, count_include_pad: bool = True) -> Tensor:
    """1d average pooling; see :func:`avg_pool2d`, with one spatial dimension and without divisor_override."""
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
               ceil_mode: bool = False, count_include_pad: bool = True,
               divisor_override: int | None = None) -> Tensor:
    """The mean of each window; padding counts as zeros, unless count_include_pad is False.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float32, float64, bfloat16 or float16; any strides.
            channels_last input gives channels_last output.
        kernel_size: int or 2 ints, >= 1.
        stride: int or 2 ints, >= 1; None or ``[]`` means kernel_size.
        padding: int or 2 ints, 0 to kernel_size / 2, of zeros on both sides.
        ceil_mode: rounds the output size up; a window that would start in the high padding is dropped. What lies
            beyond the high padding never counts.
        count_include_pad: divides by the window's size with the padding in it, else by that inside the image.
        divisor_override: divides every sum instead; not zero.

    Returns:
        ``(N, C, H', W')`` with ``H' = floor((H + 2*padding - kH) / stride) + 1`` (ceil with ceil_mode).

    Raises:
        RuntimeError: shapes or arguments that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    16-bit values are summed in float32 and rounded once.

    Source: :func:`torch.nn.functional.avg_pool2d`, whose answers this reproduces.

    Example:
        >>> convnorm.functional.avg_pool2d(torch.randn(1, 64, 112, 112), 2).shape
        torch.Size([1, 64, 56, 56])
    """
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
               ceil_mode: bool = False, count_include_pad: bool = True,
               divisor_override: int | None = None) -> Tensor:
    """3d average pooling; see :func:`avg_pool2d`, with three spatial dimensions (D, H, W)."""
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
