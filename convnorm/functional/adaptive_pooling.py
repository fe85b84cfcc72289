"""Adaptive pooling under torch.nn.functional's names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._args import add_batch, autocast_float32, require_float
from ..ops._function import derivative_wanted
from ..ops._max_pool_indices import AdaptiveMaxPool
from ..ops.avg_pool import AdaptiveAvgPool

_Size = int | Sequence[int | None] | None


def _output_size(op: str, n: int, output_size: _Size, input: Tensor) -> list[int]:
    """An int for every dimension, or n ints of which None keeps the input's size (in 2d and 3d, as in torch)."""
    if isinstance(output_size, (int, torch.SymInt)):
        return [output_size] * n
    if output_size is None or (n == 1 and any(size is None for size in output_size)):
        raise TypeError(f"{op}: output_size {output_size} must be an int or {n} ints")
    sizes = list(output_size)
    if n > 1 and len(sizes) >= input.dim():
        raise ValueError(f"{op}: Input dimension should be at least {len(sizes) + 1}, got {input.dim()}")
    if len(sizes) != n:
        raise RuntimeError(f"{op}: output_size {tuple(sizes)} must be an int or {n} ints, one per spatial dimension")
    return [kept if size is None else size for size, kept in zip(sizes, input.shape[-n:], strict=True)]


def _prepare(op: str, n: int, input: Tensor, output_size: _Size) -> tuple[Tensor, list[int], bool]:
    """(n, c, spatial...), the output size, and whether the batch dimension was missing."""
    require_float(op, "input", input)
    sizes = _output_size(op, n, output_size, input)
    x, unbatched = add_batch(op, autocast_float32("cpu", input)[0] if n == 3 else input, n)
    return x, sizes, unbatched


def _adaptive_avg_pool(n: int, input: Tensor, output_size: _Size) -> Tensor:
    x, sizes, unbatched = _prepare(f"adaptive_avg_pool{n}d", n, input, output_size)
    out = AdaptiveAvgPool.call(x, sizes)
    return out.squeeze(0) if unbatched else out


def adaptive_avg_pool1d(input: Tensor, output_size: _Size) -> Tensor:
    """1d adaptive average pooling; see :func:`adaptive_avg_pool2d`. None is not taken, as in torch."""
    return _adaptive_avg_pool(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: _Size) -> Tensor:
    """Means of windows that share the input out: row o of H' averages rows ``floor(o*H/H')`` to ``ceil((o+1)*H/H')``.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float32, float64, bfloat16 or float16; any strides.
            channels_last input gives channels_last output.
        output_size: int or 2 ints >= 0; None in place of one keeps the input's size. May exceed the input's.

    Returns:
        ``(N, C, H', W')`` of that size.

    Raises:
        RuntimeError: shapes or sizes that do not fit, with the rule they break.
        ValueError, TypeError: an output_size of too many values; None for all of it.
        NotImplementedError: integer or complex input.

    Source: :func:`torch.nn.functional.adaptive_avg_pool2d`, whose answers this reproduces.

    Example:
        >>> convnorm.functional.adaptive_avg_pool2d(torch.randn(1, 512, 7, 7), 1).shape
        torch.Size([1, 512, 1, 1])
    """
    return _adaptive_avg_pool(2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: _Size) -> Tensor:
    """3d adaptive average pooling; see :func:`adaptive_avg_pool2d`, with three spatial dimensions (D, H, W)."""
    return _adaptive_avg_pool(3, input, output_size)


def _adaptive_max_pool(n: int, input: Tensor, output_size: _Size,
                       return_indices: bool) -> Tensor | tuple[Tensor, Tensor]:
    x, sizes, unbatched = _prepare(f"adaptive_max_pool{n}d", n, input, output_size)
    wanted = derivative_wanted(input)
    call = AdaptiveMaxPool.call if wanted or return_indices else AdaptiveMaxPool.forward
    out, indices = call(x, sizes, bool(return_indices or wanted))
    if unbatched:
        out = out.squeeze(0)
    if not return_indices:
        return out
    return out, indices.squeeze(0) if unbatched else indices


def adaptive_max_pool1d(input: Tensor, output_size: _Size,
                        return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """1d adaptive max pooling; see :func:`adaptive_max_pool2d`. None is not taken, as in torch."""
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: _Size,
                        return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Maxima of the windows of :func:`adaptive_avg_pool2d`: of equal values the first, of NaNs the last.

    Args:
        input, output_size: as in :func:`adaptive_avg_pool2d`.
        return_indices: also returns, as int64, where in the plane each maximum was: ``h * W + w``. The backward
            keeps the same indices.

    Returns:
        ``(N, C, H', W')`` of that size, or (output, indices).

    Raises:
        RuntimeError, ValueError, TypeError, NotImplementedError: as :func:`adaptive_avg_pool2d`.

    Source: :func:`torch.nn.functional.adaptive_max_pool2d`, whose answers and indices this reproduces exactly.

    Example:
        >>> convnorm.functional.adaptive_max_pool2d(torch.randn(1, 512, 14, 14), (7, None)).shape
        torch.Size([1, 512, 7, 14])
    """
    return _adaptive_max_pool(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: _Size,
                        return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """3d adaptive max pooling; see :func:`adaptive_max_pool2d`, with three spatial dimensions (D, H, W)."""
    return _adaptive_max_pool(3, input, output_size, return_indices)


def adaptive_max_pool1d_with_indices(input: Tensor, output_size: _Size,
                                     return_indices: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`adaptive_max_pool1d` with ``return_indices=True``, whatever the last argument says (as in torch)."""
    out, indices = _adaptive_max_pool(1, input, output_size, True)
    return out, indices


def adaptive_max_pool2d_with_indices(input: Tensor, output_size: _Size,
                                     return_indices: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`adaptive_max_pool2d` with ``return_indices=True``, whatever the last argument says (as in torch)."""
    out, indices = _adaptive_max_pool(2, input, output_size, True)
    return out, indices


def adaptive_max_pool3d_with_indices(input: Tensor, output_size: _Size,
                                     return_indices: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`adaptive_max_pool3d` with ``return_indices=True``, whatever the last argument says (as in torch)."""
    out, indices = _adaptive_max_pool(3, input, output_size, True)
    return out, indices
