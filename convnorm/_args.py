"""Normalising arguments: what torch.nn.functional accepts -> what the ops take. Checks of values live in C++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ntuple(op: str, name: str, value: int | Sequence[int], n: int) -> list[int]:
    """An int, or a sequence of 1 or n ints, as a list of n ints."""
    if isinstance(value, (int, torch.SymInt)):
        return [value] * n
    values = list(value)
    if len(values) == 1:
        return values * n
    if len(values) != n:
        raise RuntimeError(f"{op}: {name} {tuple(values)} must be an int or {n} ints, one per spatial dimension")
    return values


def add_batch(op: str, input: Tensor, n: int) -> tuple[Tensor, bool]:
    """(n, c, spatial...) and whether the batch dimension was missing."""
    if input.dim() == n + 2:
        return input, False
    if input.dim() == n + 1:
        return input.unsqueeze(0), True
    raise RuntimeError(
        f"{op}: expected {n + 1}D (unbatched) or {n + 2}D (batched) input, but got input of size {list(input.shape)}"
    )


def require_float(op: str, name: str, t: Tensor) -> None:
    if not t.dtype.is_floating_point:
        raise NotImplementedError(
            f"{op}: {name} has dtype {t.dtype}, must be float32, float64, bfloat16 or float16"
        )


def autocast_lower(device: torch.device, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """torch's autocast rule for convolutions: float32 and 16-bit tensors go to the autocast dtype."""
    kind = device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # torch has no autocast for meta, and raises
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        t if t is None or not t.dtype.is_floating_point or t.dtype == torch.float64 else t.to(dtype) for t in tensors
    )


def autocast_float32(input: Tensor) -> Tensor:
    """torch's autocast rule on the CPU for 3d average and adaptive pooling and un-pooling: 16 bits become float32."""
    half = input.dtype in (torch.bfloat16, torch.float16)
    return input.float() if half and input.device.type == "cpu" and torch.is_autocast_enabled("cpu") else input
