"""Whether a fold changed the answers on a sample by more than rounding explains."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..testing import error_bound, max_error
from .trace import duplicate

Sample = tuple[tuple, dict]
_DRAWS = 4  # of changed weights


def outputs(model: nn.Module, sample: Sample, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The floating-point tensors that a model returns for a sample, which is left as it is; cast to ``dtype`` first."""
    def own(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(dtype, copy=True) if dtype is not None and x.is_floating_point() else x.clone()

    args, kwargs = tree_map(own, sample)
    with torch.no_grad():
        found = model(*args, **kwargs)
    return [x.clone() for x in tree_leaves(found) if isinstance(x, Tensor) and x.is_floating_point()]


def _move(model: nn.Module, like: nn.Module, seed: int) -> nn.Module:
    """Every parameter and buffer times ``1 + eps`` or ``1 - eps``, at random, with the eps of its dtype in ``like``."""
    generator = torch.Generator().manual_seed(seed)
    tensors = zip(chain(model.parameters(), model.buffers()), chain(like.parameters(), like.buffers()), strict=True)
    with torch.no_grad():
        for t, original in tensors:
            if t.is_floating_point():
                signs = torch.randint(0, 2, t.shape, generator=generator).to(t) * 2 - 1
                t.mul_(1 + torch.finfo(original.dtype).eps * signs)
    return model


class Check:
    """What a model returned before a fold, and how far from that rounding alone could take it.

    Folding rounds weights anew and in another order. What that may do to the outputs is measured, on copies in float64:
    the model's own error, and the effect of moving every weight by a unit, which is twice what rounding does.
    """

    def __init__(self, caller: str, model: nn.Module, sample: Sample) -> None:
        self.sample, self.before = sample, outputs(model, sample)
        if not self.before:
            raise ValueError(f"{caller}: the model returns no floating-point tensor to compare on the sample")
        try:
            self.exact = outputs(duplicate(model).double(), sample, torch.float64)
            moved = [outputs(_move(duplicate(model).double(), model, i), sample, torch.float64) for i in range(_DRAWS)]
        except Exception as error:
            raise RuntimeError(f"{caller}: the outputs on the sample are compared with those of a copy in float64, "
                               f"which does not run: {error}") from error  # fmt: skip
        self.spread = [max(max_error(x, exact) for x in found)
                       for found, exact in zip(zip(self.before, *moved, strict=True), self.exact, strict=True)]

    def compare(self, model: nn.Module, sample: Sample | None = None) -> tuple[float, float]:
        """(error, bound) of the output that comes nearest to its bound, or is furthest beyond it.

        ``sample`` is what this model takes of the sample, where that is not all.

        The bound is convnorm.testing's: twice the spread plus rounding units of the output's dtype, here two. What a
        float64 model is compared with has errors of its own, so there the spread counts once more.
        """
        found = []
        for new, exact, spread in zip(outputs(model, sample or self.sample), self.exact, self.spread, strict=True):
            times = 3 if new.dtype == torch.float64 else 2
            found.append((max_error(new, exact), error_bound(spread, exact, new.dtype, times, units=2)))
        return max(found, key=lambda pair: pair[0] / pair[1] if pair[1] else pair[0])
