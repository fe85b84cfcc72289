"""Normalising arguments: what torch.nn.functional accepts -> what the ops take. Checks of values live in C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false


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


def known_true(condition: bool | torch.SymBool | Tensor) -> bool:
    """Whether a condition on sizes holds; False, without a guard, where sizes are dynamic and it is open.

    torch.jit.trace makes tensors of sizes, and so of conditions on them.
    """
    return bool(condition) if isinstance(condition, Tensor) else guard_or_false(condition)


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


def autocast_float32(kind: str, *tensors: Tensor | None) -> tuple[Any, ...]:
    """torch's autocast rule for the ops of its float32 list on a kind of device: 16 bits become float32.

    On the CPU un-pooling and 3d max, average and adaptive pooling are in that list, on CUDA layer and group norm.
    """
    first = tensors[0]
    assert first is not None
    if first.device.type != kind or not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(t if t is None or t.dtype not in (torch.bfloat16, torch.float16) else t.float() for t in tensors)
