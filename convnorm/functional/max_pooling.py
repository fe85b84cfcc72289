"""Max pooling under torch.nn.functional's names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._args import add_batch, autocast_float32, ntuple, require_float
from ..ops._function import derivative_wanted
from ..ops.max_pool import INDICES, NOTHING, OFFSETS, MaxPool

_Size = int | Sequence[int]


def max_pool_window(op: str, n: int, kernel_size: _Size, stride: _Size | None, padding: _Size,
                    dilation: _Size) -> list[int]:
    """Kernel size, stride, padding and dilation of n dimensions as the ops take them: one list."""
    kernel = ntuple(op, "kernel_size", kernel_size, n)
    given = stride is not None and (isinstance(stride, (int, torch.SymInt)) or len(stride) > 0)
    strides = ntuple(op, "stride", stride, n) if given else kernel  # type: ignore[arg-type]
    return [*kernel, *strides, *ntuple(op, "padding", padding, n), *ntuple(op, "dilation", dilation, n)]


def _max_pool(n: int, input: Tensor, kernel_size: _Size, stride: _Size | None, padding: _Size,
              dilation: _Size, ceil_mode: bool, return_indices: bool) -> Tensor | tuple[Tensor, Tensor]:
    op = f"max_pool{n}d"
    require_float(op, "input", input)
    window = max_pool_window(op, n, kernel_size, stride, padding, dilation)
    if n == 3 and not return_indices:
        (input,) = autocast_float32("cpu", input)
    x, unbatched = add_batch(op, input, n)
    record = INDICES if return_indices else OFFSETS if derivative_wanted(input) else NOTHING
    call = MaxPool.call if record else MaxPool.forward
    out, argmax = call(x, window, bool(ceil_mode), record)
    if unbatched:
        out = out.squeeze(0)
    if not return_indices:
        return out
    return out, argmax.squeeze(0) if unbatched else argmax


def max_pool1d(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
               dilation: _Size = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """1d max pooling; see :func:`max_pool2d`, with one spatial dimension."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
               dilation: _Size = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window: of equal values the first, of NaNs the last; padding never wins.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float32, float64, bfloat16 or float16; any strides.
            channels_last input gives channels_last output.
        kernel_size: int or 2 ints, >= 1.
        stride: int or 2 ints, >= 1; None or ``[]`` means kernel_size.
        padding: int or 2 ints, 0 to kernel_size / 2, of -inf on both sides.
        dilation: int or 2 ints, >= 1.
        ceil_mode: rounds the output size up; a window that would start in the high padding is dropped.
        return_indices: also returns, as int64, where in the plane each maximum was: ``h * W + w``.

    Returns:
        ``(N, C, H', W')`` with ``H' = floor((H + 2*padding - dilation*(kH-1) - 1) / stride) + 1`` (ceil with
        ceil_mode), or (output, indices) of that size. For the backward one byte per output is kept
        (4 bytes when the window has more than 256 positions).

    Raises:
        RuntimeError: shapes or arguments that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    Source: :func:`torch.nn.functional.max_pool2d`, whose answers and indices this reproduces exactly.

    Example:
        >>> convnorm.functional.max_pool2d(torch.randn(1, 64, 112, 112), 3, stride=2, padding=1).shape
        torch.Size([1, 64, 56, 56])
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
               dilation: _Size = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """3d max pooling; see :func:`max_pool2d`, with three spatial dimensions (D, H, W)."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d_with_indices(input: Tensor, kernel_size: _Size, stride: _Size | None = None,
                            padding: _Size = 0, dilation: _Size = 1, ceil_mode: bool = False,
                            return_indices: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`max_pool1d` with ``return_indices=True``, whatever the last argument says (as in torch)."""
    out, indices = _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, True)
    return out, indices


def max_pool2d_with_indices(input: Tensor, kernel_size: _Size, stride: _Size | None = None,
                            padding: _Size = 0, dilation: _Size = 1, ceil_mode: bool = False,
                            return_indices: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`max_pool2d` with ``return_indices=True``, whatever the last argument says (as in torch)."""
    out, indices = _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, True)
    return out, indices


def max_pool3d_with_indices(input: Tensor, kernel_size: _Size, stride: _Size | None = None,
                            padding: _Size = 0, dilation: _Size = 1, ceil_mode: bool = False,
                            return_indices: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`max_pool3d` with ``return_indices=True``, whatever the last argument says (as in torch)."""
    out, indices = _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, True)
    return out, indices
