"""How much arithmetic an op does that memory limits: additions, multiplications and comparisons, at least."""

from __future__ import annotations

import math
from typing import Any

PER_VALUE = {
    "batch_norm": 5,  # statistics 3, normalise and affine 2
    "batch_norm_relu": 6,
    "batch_norm_eval": 2,
    "layer_norm": 7,  # statistics 3, normalise 2, affine 2: its weights go along the values that are summed
    "group_norm": 5,
    "instance_norm": 5,
}


def window_size(arguments: dict[str, Any], dims: int) -> int:
    """Of a window; 1 where the settings have none."""
    size = arguments.get("kernel_size", 1)
    return math.prod(size) if isinstance(size, tuple) else size**dims


def arithmetic(op: str, values: int, results: int, window: int = 1) -> float:
    """A norm's count goes by its values, twice in a backward; a pool's is one per result and position of the window."""
    stem, backward = op.removesuffix("_backward"), op.endswith("_backward")
    if stem in PER_VALUE:
        return float(PER_VALUE[stem] * values * (1 + backward))
    return float(max(results * window, values))  # adaptive windows hold every value once, or more often
