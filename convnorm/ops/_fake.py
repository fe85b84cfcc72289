"""What fake kernels share: output layouts by torch's own rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._prims_common import are_strides_like_channels_last_or_false


def strides_want_channels_last(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """torch's rule: channels, the last spatial dimension, ..., the batch have strides that do not decrease."""
    if len(sizes) < 4 or strides[1] > strides[-1]:
        return False
    if torch.compiler.is_compiling():  # torch's function, which takes 6 us, can do with sizes that are not known yet
        return are_strides_like_channels_last_or_false(sizes, strides)
    if strides[1] == 0 or 0 in sizes:
        return False
    least = strides[1] * sizes[1]
    for d in range(len(sizes) - 1, 1, -1):
        if strides[d] < least:
            return False
        least = strides[d] * sizes[d]
    # Where that comes to the channels' own stride, all sizes but the batch are 1, and any layout would fit.
    return strides[0] >= least and least != strides[1]


def wants_channels_last(*tensors: torch.Tensor | None) -> bool:
    """True when one of the (n, c, spatial...) tensors asks for channels_last; 1d tensors never do."""
    for t in tensors:  # noqa: SIM110 - any() of a generator takes longer
        if t is not None and strides_want_channels_last(t.shape, t.stride()):
            return True
    return False


def same_kind(op: str, *tensors: torch.Tensor | None) -> None:
    """One device and one dtype, as the host files demand.

    A fake also answers for real tensors mixed with meta ones: uninitialised memory, unless it refuses.
    """
    for rule, what in (("be on the same", "device"), ("have the same", "dtype")):
        found = [getattr(t, what) for t in tensors if t is not None]
        if any(f != found[0] for f in found):
            raise RuntimeError(f"{op}: Expected all tensors to {rule} {what}, got {', '.join(map(str, found))}")


def empty(
    like: torch.Tensor, size: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """An uninitialised dense tensor in the layout that the native host files allocate."""
    fmt = torch.contiguous_format
    if channels_last and len(size) >= 4:
        fmt = torch.channels_last if len(size) == 4 else torch.channels_last_3d
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=fmt)
