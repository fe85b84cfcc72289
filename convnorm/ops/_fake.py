"""What fake kernels share: output layouts by torch's own rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._prims_common import suggest_memory_format

_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)


def wants_channels_last(*tensors: torch.Tensor | None) -> bool:
    """True when one of the (n, c, spatial...) tensors asks for channels_last; 1d tensors never do."""
    return any(t is not None and t.dim() >= 4 and suggest_memory_format(t) in _CHANNELS_LAST for t in tensors)


def same_device(op: str, *tensors: torch.Tensor | None) -> None:
    """A fake also answers for real tensors mixed with meta ones: uninitialised memory, unless it refuses."""
    devices = [t.device for t in tensors if t is not None]
    if any(d != devices[0] for d in devices):
        names = ", ".join(map(str, devices))
        raise RuntimeError(f"{op}: Expected all tensors to be on the same device, got {names}")


def empty(
    like: torch.Tensor, size: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """An uninitialised dense tensor in the layout that the native host files allocate."""
    fmt = torch.contiguous_format
    if channels_last and len(size) >= 4:
        fmt = torch.channels_last if len(size) == 4 else torch.channels_last_3d
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=fmt)
