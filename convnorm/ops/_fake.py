"""What fake kernels share: output layouts by torch's own rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._prims_common import suggest_memory_format

_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)


def wants_channels_last(*tensors: torch.Tensor | None) -> bool:
    """True when one of the (n, c, spatial...) tensors asks for channels_last; 1d tensors never do.

    torch's function takes 5 us; one comparison of strides rules most tensors out.
    """
    return any(
        t is not None and t.dim() >= 4 and t.stride(1) <= t.stride(-1) and suggest_memory_format(t) in _CHANNELS_LAST
        for t in tensors
    )


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
