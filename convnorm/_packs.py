"""Weights laid out for a kernel once and kept: what :func:`convnorm.freeze` gives a convolution.

What a kernel packs follows from the problem (shapes, layout, dtype, the choice of kernel), so there is a pack per
problem; packs of equal contents, as of two batch sizes, are one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _C

_MOST = 16  # problems that are remembered; the oldest goes first


def _stamp(weight: Tensor) -> tuple[Any, ...]:
    """Changes with whatever torch knows of that writes to weight, and not with a write through ``.data``."""
    version = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.shape, weight.stride()


class Packs:
    """The packed weights of one module. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._packs: dict[Any, Tensor | None] = {}
        self._stamp: tuple[Any, ...] = ()

    def serve(self, input: Any) -> bool:
        """False where a call is looked at instead of made, by torch.fx, torch.compile, torch.export or torch.jit."""
        return isinstance(input, Tensor) and not torch.compiler.is_compiling() and not torch.jit.is_tracing()

    def find(self, input: Tensor, weight: Tensor, geometry: Sequence[Any]) -> Tensor | None:
        """The pack for a call of :func:`torch.ops.convnorm.conv_act`, made now if there is none; None where the chosen
        kernel keeps none.
        """
        stamp = _stamp(weight)
        if stamp != self._stamp:
            self._packs.clear()
            self._stamp = stamp
        stride, padding, dilation, groups = geometry
        problem = (tuple(stride), tuple(padding), tuple(dilation), groups)
        choice = (_C.active_isa(), _C.winograd(), _C.forced_kernel("conv_forward"))
        key = (input.shape, input.stride(), problem, choice)
        if key not in self._packs:
            if len(self._packs) >= _MOST:
                del self._packs[next(iter(self._packs))]
            self._packs[key] = self._make(input, weight, geometry)
        return self._packs[key]

    def _make(self, input: Tensor, weight: Tensor, geometry: Sequence[Any]) -> Tensor | None:
        packed = torch.ops.convnorm.conv_pack(input, weight, *geometry)
        if packed.numel() == 0:
            return None
        same = (p for p in self._packs.values() if p is not None and torch.equal(p, packed))
        return next(same, packed)

    def bytes(self) -> int:
        """Memory that the packs take."""
        return sum(p.numel() for p in {id(p): p for p in self._packs.values() if p is not None}.values())

    def __reduce__(self) -> tuple[type[Packs], tuple[()]]:
        return Packs, ()
