"""Normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

from ._sizes import ints, known, vector


def _filled(value: float, shape: Any, like: Any) -> Any:
    return op.Expand(op.CastLike(op.Constant(value_float=value), like), shape)


def _statistics(x: Any, axes: Sequence[int]) -> tuple[Any, Any, Any]:
    """x - mean, the biased variance, and the mean, along axes that are kept."""
    over = ints(*axes)
    mean = op.ReduceMean(x, over)
    centred = op.Sub(x, mean)
    return centred, op.ReduceMean(op.Mul(centred, centred), over), mean


def _stats(x: Any, axes: Sequence[int], *shape: int) -> Any:
    """float64 (2, *shape): mean and variance, as convnorm's ops give them beside the output."""
    _, var, mean = _statistics(x, axes)
    rows = [op.Reshape(t, ints(1, *shape)) for t in (mean, var)]
    return op.Cast(op.Concat(*rows, axis=0), to=ir.DataType.DOUBLE)


def _finish(x: Any, residual: Any, relu: bool) -> Any:
    x = x if residual is None else op.Add(x, residual)
    return op.Relu(x) if relu else x


def _affine(x: Any, weight: Any, bias: Any) -> Any:
    """weight * x + bias per channel."""
    shape = ints(-1, *(1,) * (len(x.shape) - 2))
    x = x if weight is None else op.Mul(x, op.CastLike(op.Reshape(weight, shape), x))
    return x if bias is None else op.Add(x, op.CastLike(op.Reshape(bias, shape), x))


def batch_norm_eval(
    input: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    running_mean: Any,
    running_var: Any,
    eps: float,
    relu: bool,
) -> Any:
    channels = op.Shape(running_mean)
    scale = _filled(1.0, channels, running_mean) if weight is None else weight
    shift = _filled(0.0, channels, running_mean) if bias is None else bias
    return _finish(op.BatchNormalization(input, scale, shift, running_mean, running_var, epsilon=eps), residual, relu)


def batch_norm_train(
    input: Any, weight: Any, bias: Any, residual: Any, eps: float, relu: bool
) -> tuple[Any, Any]:
    axes = [d for d in range(len(input.shape)) if d != 1]
    centred, var, _ = _statistics(input, axes)
    xhat = op.Div(centred, op.Sqrt(op.Add(var, op.CastLike(op.Constant(value_float=eps), input))))
    xhat.shape = input.shape
    return _finish(_affine(xhat, weight, bias), residual, relu), _stats(input, axes, -1)


def layer_norm_forward(
    input: Any, normalized_shape: Sequence[Any], weight: Any, bias: Any, eps: float
) -> tuple[Any, Any]:
    scale = _filled(1.0, vector(normalized_shape), input) if weight is None else weight
    axes = range(-len(normalized_shape), 0)
    output, *_ = op.LayerNormalization(input, scale, bias, axis=axes[0], epsilon=eps)
    return output, _stats(input, axes, -1)


def group_norm_forward(input: Any, num_groups: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any]:
    """InstanceNormalization, of the groups in place of channels; ONNX has GroupNormalization from opset 21 on only."""
    (groups,) = known("group_norm: num_groups", [num_groups])
    grouped = op.Reshape(input, ints(0, groups, -1))
    one, zero = (_filled(value, ints(groups), input) for value in (1.0, 0.0))
    stats = _stats(grouped, [2], -1, groups)
    if len(input.shape) > 2 and input.shape[1] == groups:
        scale, shift = (t if v is None else op.CastLike(v, input) for v, t in ((weight, one), (bias, zero)))
        return op.InstanceNormalization(input, scale, shift, epsilon=eps), stats
    xhat = op.Reshape(op.InstanceNormalization(grouped, one, zero, epsilon=eps), op.Shape(input))
    xhat.shape = input.shape
    return _affine(xhat, weight, bias), stats


def table() -> dict[Callable, Callable]:
    ops = torch.ops.convnorm
    return {
        ops.batch_norm_eval.default: batch_norm_eval,
        ops.batch_norm_train.default: batch_norm_train,
        ops.layer_norm_forward.default: layer_norm_forward,
        ops.group_norm_forward.default: group_norm_forward,
    }
