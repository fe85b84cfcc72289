"""Un-pooling under torch.nn.functional's names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._args import add_batch, autocast_float32, ntuple, require_float
from ..ops._max_pool_indices import MaxUnpool

_Size = int | Sequence[int]


def _unpooled_size(op: str, spatial: Sequence[int], kernel: list[int], stride: list[int], padding: list[int],
                   output_size: Sequence[int] | None) -> list[int]:
    """(in - 1)*stride + kernel - 2*padding, or output_size where it is less than a stride from that."""
    own = [(i - 1) * s + k - 2 * p for i, k, s, p in zip(spatial, kernel, stride, padding, strict=True)]
    if output_size is None:
        sizes = own
    else:
        n, sizes = len(own), list(output_size)
        if len(sizes) == n + 2:
            sizes = sizes[2:]
        if len(sizes) != n:
            raise ValueError(f"{op}: output_size {tuple(sizes)} should have {n} or {n + 2} elements, not {len(sizes)}")
        for d, (size, middle, s) in enumerate(zip(sizes, own, stride, strict=True)):
            if not middle - s < size < middle + s:
                raise ValueError(
                    f"{op}: invalid output_size {tuple(sizes)} (dim {d} must be between {middle - s} and {middle + s})"
                )
    if any(size < 0 for size in sizes):
        raise ValueError(f"{op}: output_size {tuple(sizes)} must contain non-negative spatial dimensions")
    return sizes


def _max_unpool(n: int, input: Tensor, indices: Tensor, kernel_size: _Size, stride: _Size | None, padding: _Size,
                output_size: Sequence[int] | None) -> Tensor:
    op = f"max_unpool{n}d"
    require_float(op, "input", input)
    kernel = ntuple(op, "kernel_size", kernel_size, n)
    strides = kernel if stride is None else ntuple(op, "stride", stride, n)
    pads = ntuple(op, "padding", padding, n)
    x, unbatched = add_batch(op, autocast_float32("cpu", input)[0], n)
    sizes = _unpooled_size(op, x.shape[2:], kernel, strides, pads, output_size)
    if n == 3 and any(s <= 0 for s in strides):
        raise RuntimeError(f"{op}: strides should be greater than zero, but got stride {tuple(strides)}")
    if indices.dim() != input.dim():
        raise RuntimeError(f"{op}: indices of size {list(indices.shape)} must have input's size {list(input.shape)}")
    out = MaxUnpool.call(x, indices.unsqueeze(0) if unbatched else indices, sizes)
    return out.squeeze(0) if unbatched else out


def max_unpool1d(input: Tensor, indices: Tensor, kernel_size: _Size, stride: _Size | None = None,
                 padding: _Size = 0, output_size: Sequence[int] | None = None) -> Tensor:
    """1d max un-pooling; see :func:`max_unpool2d`, with one spatial dimension."""
    return _max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(input: Tensor, indices: Tensor, kernel_size: _Size, stride: _Size | None = None,
                 padding: _Size = 0, output_size: Sequence[int] | None = None) -> Tensor:
    """A partial inverse of max pooling: every value back at its index in a plane of zeros.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float32, float64, bfloat16 or float16; any strides.
            channels_last input gives channels_last output.
        indices: int64 of input's size, as :func:`max_pool2d` returns them. Of several values at one index the last
            (in row-major order) stays, in every run.
        kernel_size, stride, padding: those of the pooling; they give the output's size.
        output_size: ``(H', W')``, or all 4 sizes, where the pooling's own arithmetic leaves a choice.

    Returns:
        ``(N, C, H', W')`` with ``H' = (H - 1)*stride - 2*padding + kernel_size``, or output_size.

    Raises:
        ValueError: an output_size that this pooling cannot come from.
        RuntimeError: an index outside the output (on CUDA its plane is filled with NaN instead); shapes and dtypes
            that do not fit.
        NotImplementedError: integer or complex input.

    Source: :func:`torch.nn.functional.max_unpool2d`, whose answers this reproduces.

    Example:
        >>> y, indices = convnorm.functional.max_pool2d(torch.randn(1, 3, 8, 8), 2, return_indices=True)
        >>> convnorm.functional.max_unpool2d(y, indices, 2).shape
        torch.Size([1, 3, 8, 8])
    """
    return _max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(input: Tensor, indices: Tensor, kernel_size: _Size, stride: _Size | None = None,
                 padding: _Size = 0, output_size: Sequence[int] | None = None) -> Tensor:
    """3d max un-pooling; see :func:`max_unpool2d`, with three spatial dimensions (D, H, W)."""
    return _max_unpool(3, input, indices, kernel_size, stride, padding, output_size)
