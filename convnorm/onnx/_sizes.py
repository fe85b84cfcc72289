"""What the translations share: sizes that are numbers at export, or values of the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from onnxscript import opset18 as op

Size = Any  # an int, or a scalar of the graph where the size is dynamic


def ints(*values: int) -> Any:
    """A constant int64 vector."""
    return op.Constant(value_ints=list(values))


def vector(sizes: Sequence[Size]) -> Any:
    """Sizes as one int64 vector."""
    if all(isinstance(s, int) for s in sizes):
        return ints(*sizes)
    return op.Concat(*(ints(s) if isinstance(s, int) else op.Reshape(s, ints(-1)) for s in sizes), axis=0)


def known(what: str, sizes: Sequence[Size]) -> list[int]:
    """The sizes as ints; an error where one is dynamic."""
    if not all(isinstance(s, int) for s in sizes):
        raise ValueError(f"convnorm.onnx: {what} must be known at export, not dynamic")
    return list(sizes)


def spatial(input: Any) -> list[Size]:
    """The sizes of input behind batch and channels."""
    return list(input.shape)[2:]


def plane(input: Any) -> Any:
    """The number of positions in one channel of input, as a value."""
    sizes = spatial(input)
    if all(isinstance(s, int) for s in sizes):
        return op.Constant(value_int=math.prod(sizes))
    return op.ReduceProd(op.Shape(input, start=2), keepdims=0)
