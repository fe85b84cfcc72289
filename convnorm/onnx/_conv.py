"""Convolution and its transpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18 as op

from ._sizes import ints, known, spatial, vector


def conv_forward(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Any:
    pads = known("conv: padding", padding)  # all low sides, then all high sides, in ONNX as here
    return op.Conv(input, weight, bias, strides=list(stride), pads=pads, dilations=list(dilation), group=groups)


def conv_act(
    input: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
) -> Any:
    out = conv_forward(input, weight, bias, stride, padding, dilation, groups)
    out = out if residual is None else op.Add(out, residual)
    return op.Relu(out) if relu else out


def conv_by_input(
    grad_output: Any,
    weight: Any,
    input_size: Sequence[Any],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Any:
    size, pads, n = list(input_size)[2:], known("conv_transpose: padding", padding), len(stride)
    geometry = {"strides": list(stride), "dilations": list(dilation), "group": groups}
    grid = spatial(grad_output)
    if all(isinstance(s, int) for s in (*size, *grid)):
        kernel = known("conv_transpose: kernel", spatial(weight))
        own = [
            (grid[i] - 1) * stride[i] - pads[i] - pads[n + i] + dilation[i] * (kernel[i] - 1) + 1 for i in range(n)
        ]
        extra = [s - o for s, o in zip(size, own, strict=True)]
        return op.ConvTranspose(grad_output, weight, pads=pads, output_padding=extra, **geometry)
    # How much the output is padded depends on sizes: take all there is, and cut the output out of it.
    whole = op.ConvTranspose(grad_output, weight, output_padding=[s - 1 for s in stride], **geometry)
    first = ints(*pads[:n])
    return op.Slice(whole, first, op.Add(first, vector(size)), ints(*range(2, 2 + n)))


def table() -> dict[Callable, Callable]:
    ops = torch.ops.convnorm
    return {
        ops.conv_forward.default: conv_forward,
        ops.conv_act.default: conv_act,
        ops.conv_by_input.default: conv_by_input,
    }
