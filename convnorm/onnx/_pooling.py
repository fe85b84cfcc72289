"""Pooling: windows, adaptive windows, un-pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op

from ..ops.max_pool import INDICES, NOTHING, output_size, parts
from ._sizes import ints, known, plane, spatial, vector


def _nothing(dtype: type) -> Any:
    """The empty tensor that stands for indices nobody asked for."""
    return op.Constant(value=ir.tensor(np.empty(0, dtype)))


def _max_pool(input: Any, **window: Any) -> tuple[Any, Any]:
    """MaxPool, and indices within the plane: ONNX counts them through all images and channels."""
    output, indices = op.MaxPool(input, **window)
    return output, op.Mod(indices, plane(input))


def max_pool_forward(
    input: Any, window: Sequence[Any], ceil_mode: bool, record: int
) -> tuple[Any, Any]:
    kernel, stride, padding, dilation = parts(window, 4)
    if record not in (NOTHING, INDICES):
        raise ValueError("convnorm.onnx: offsets that max_pool_forward records for its backward have no ONNX form")
    output, indices = _max_pool(
        input,
        kernel_shape=known("max_pool: kernel_size", kernel),
        strides=known("max_pool: stride", stride),
        pads=known("max_pool: padding", padding) * 2,
        dilations=known("max_pool: dilation", dilation),
        ceil_mode=int(ceil_mode),
    )
    return output, indices if record == INDICES else _nothing(np.uint8)


def avg_pool_forward(
    input: Any, window: Sequence[Any], ceil_mode: bool, count_include_pad: bool, divisor_override: int | None
) -> Any:
    kernel, stride, padding = parts(window, 3)
    shape = known("avg_pool: kernel_size", kernel)
    strides, pads = known("avg_pool: stride", stride), known("avg_pool: padding", padding)
    if divisor_override is None:
        rounding = {"ceil_mode": int(ceil_mode), "count_include_pad": int(count_include_pad)}
        return op.AveragePool(input, kernel_shape=shape, strides=strides, pads=pads * 2, **rounding)
    # With every zero written out the mean of a window is its sum over a constant.
    sizes = known("avg_pool with divisor_override: input sizes", spatial(input))
    outputs = output_size(sizes, shape, strides, pads, [1] * len(shape), ceil_mode)
    ends = [(o - 1) * s + k - n - p for o, s, k, n, p in zip(outputs, strides, shape, sizes, pads, strict=True)]
    zeros = op.Pad(input, ints(0, 0, *pads, 0, 0, *ends))
    mean = op.AveragePool(zeros, kernel_shape=shape, strides=strides)
    return op.Mul(mean, op.CastLike(op.Constant(value_float=math.prod(shape) / divisor_override), input))


def _windows(size: int, outputs: int) -> list[range]:
    """The input positions of each output of adaptive pooling along one dimension."""
    return [range(o * size // outputs, -(-(o + 1) * size // outputs)) for o in range(outputs)]


def _adaptive(name: str, input: Any, size: Sequence[Any]) -> tuple[list[int], list[int], bool]:
    """Input and output sizes, and whether all windows are equal and do not overlap."""
    sizes, outputs = known(f"{name}: input sizes", spatial(input)), known(f"{name}: output_size", size)
    return sizes, outputs, all(o and s % o == 0 for s, o in zip(sizes, outputs, strict=True))


def adaptive_avg_pool_forward(input: Any, size: Sequence[Any]) -> Any:
    if all(isinstance(s, int) and s == 1 for s in size):
        return op.GlobalAveragePool(input)
    sizes, outputs, divides = _adaptive("adaptive_avg_pool", input, size)
    if divides:
        window = [s // o for s, o in zip(sizes, outputs, strict=True)]
        return op.AveragePool(input, kernel_shape=window, strides=window)
    last, out = len(sizes) + 1, input
    for axis, (length, count) in enumerate(zip(sizes, outputs, strict=True), 2):
        mean = np.zeros((length, count), np.float32)
        for o, positions in enumerate(_windows(length, count)):
            mean[list(positions), o] = 1 / len(positions)
        order = [d for d in range(last + 1) if d != axis] + [axis]
        product = op.MatMul(op.Transpose(out, perm=order), op.CastLike(op.Constant(value=ir.tensor(mean)), input))
        out = op.Transpose(product, perm=[order.index(d) for d in range(last + 1)])
    return out


def adaptive_max_pool_forward(input: Any, size: Sequence[Any], return_indices: bool) -> tuple[Any, Any]:
    if all(isinstance(s, int) and s == 1 for s in size) and not return_indices:
        return op.GlobalMaxPool(input), _nothing(np.int64)
    sizes, outputs, divides = _adaptive("adaptive_max_pool", input, size)
    if divides:
        window = [s // o for s, o in zip(sizes, outputs, strict=True)]
        output, indices = _max_pool(input, kernel_shape=window, strides=window)
        return output, indices if return_indices else _nothing(np.int64)
    if return_indices:
        raise ValueError(f"convnorm.onnx: adaptive_max_pool: indices need output_size {outputs} to divide {sizes}")
    out = input
    for axis, (length, count) in enumerate(zip(sizes, outputs, strict=True), 2):
        windows = _windows(length, count)
        widest = max(map(len, windows), default=1)
        padded = [[w[min(i, len(w) - 1)] for i in range(widest)] for w in windows]  # the last one again
        out = op.ReduceMax(op.Gather(out, op.Constant(value=ir.tensor(padded)), axis=axis), ints(axis + 1), keepdims=0)
    return out, _nothing(np.int64)


def max_unpool_forward(input: Any, indices: Any, size: Sequence[Any]) -> Any:
    """ScatterElements rather than MaxUnpool, whose indices count through all images and channels."""
    lead = op.Shape(input, end=2)
    flat = op.Concat(lead, ints(-1), axis=0)
    sizes = vector(size)
    whole = op.Concat(lead, sizes, axis=0)
    count = op.ReduceProd(sizes, keepdims=1)
    zeros = op.Expand(op.CastLike(op.Constant(value_float=0.0), input), op.Concat(lead, count, axis=0))
    filled = op.ScatterElements(zeros, op.Reshape(indices, flat), op.Reshape(input, flat), axis=2)
    return op.Reshape(filled, whole)


def table() -> dict[Callable, Callable]:
    ops = torch.ops.convnorm
    return {
        ops.max_pool_forward.default: max_pool_forward,
        ops.avg_pool_forward.default: avg_pool_forward,
        ops.adaptive_avg_pool_forward.default: adaptive_avg_pool_forward,
        ops.adaptive_max_pool_forward.default: adaptive_max_pool_forward,
        ops.max_unpool_forward.default: max_unpool_forward,
    }
