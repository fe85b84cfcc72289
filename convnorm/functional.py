"""Functional API: the names, arguments and order of torch.nn.functional, computed by convnorm's kernels.

Each function normalises its arguments, applies autocast's rule and calls the op; the values are checked in C++.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._args import add_batch, autocast_lower, ntuple, require_float
from .ops.batch_norm import BatchNormEval, BatchNormTrain, update_running
from .ops.conv import Conv

__all__ = ["batch_norm", "batch_norm_act", "conv1d", "conv2d", "conv3d"]

_Size = int | Sequence[int]


def _same_padding(op: str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    if any(s != 1 for s in stride):
        raise RuntimeError(f"{op}: padding='same' is not supported for strided convolutions, got stride {tuple(stride)}")
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]


def _conv(op: str, n: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: _Size,
          padding: str | _Size, dilation: _Size, groups: int) -> Tensor:
    require_float(op, "input", input)
    if weight.dim() != n + 2:
        raise RuntimeError(f"{op}: weight of size {list(weight.shape)} must have {n + 2} dimensions")
    strides, dilations = ntuple(op, "stride", stride, n), ntuple(op, "dilation", dilation, n)
    if isinstance(padding, str):
        if padding == "same":
            pads = _same_padding(op, weight.shape[2:], strides, dilations)
        elif padding == "valid":
            pads = [0] * (2 * n)
        else:
            raise RuntimeError(f"{op}: padding {padding!r} must be 'same', 'valid', an int or {n} ints")
    else:
        pads = ntuple(op, "padding", padding, n) * 2
    x, unbatched = add_batch(op, input, n)
    x, w, b = autocast_lower(input.device, x, weight, bias)
    out = Conv.call(x, w, b, strides, pads, dilations, groups)
    return out.squeeze(0) if unbatched else out


def conv1d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: _Size = 1,
           padding: str | _Size = 0, dilation: _Size = 1, groups: int = 1) -> Tensor:
    """1d convolution (cross-correlation); see :func:`conv2d`, with one spatial dimension."""
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: _Size = 1,
           padding: str | _Size = 0, dilation: _Size = 1, groups: int = 1) -> Tensor:
    """2d convolution as deep learning means it: cross-correlation, no flip of the filter.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float32, float64, bfloat16 or float16; any strides.
            channels_last input (or weight) gives channels_last output.
        weight: ``(K, C / groups, kH, kW)``.
        bias: ``(K,)`` or None.
        stride, dilation: int or 2 ints, >= 1.
        padding: int or 2 ints >= 0 (zeros on both sides), ``'valid'`` or ``'same'``.
        groups: divides C and K.

    Returns:
        ``(N, K, H', W')`` with ``H' = floor((H + 2*padding - dilation*(kH-1) - 1) / stride) + 1``.

    Raises:
        RuntimeError: shapes, dtypes, devices or arguments that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    Source: :func:`torch.nn.functional.conv2d`, whose answers this reproduces.

    Example:
        >>> convnorm.functional.conv2d(torch.randn(1, 3, 32, 32), torch.randn(10, 3, 5, 5), padding=2).shape
        torch.Size([1, 10, 32, 32])
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: _Size = 1,
           padding: str | _Size = 0, dilation: _Size = 1, groups: int = 1) -> Tensor:
    """3d convolution (cross-correlation); see :func:`conv2d`, with three spatial dimensions (D, H, W)."""
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


# --- batch norm ---------------------------------------------------------------------------------------------


def batch_norm(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
               weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
               momentum: float = 0.1, eps: float = 1e-05) -> Tensor:
    """Batch normalization: each channel to zero mean and unit variance, then ``weight * xhat + bias``.

    Args:
        input: ``(N, C)``, ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``; float32, float64,
            bfloat16 or float16; any strides. channels_last input gives channels_last output.
        running_mean, running_var: ``(C,)``, both or neither; updated in training, used in evaluation.
        weight, bias: ``(C,)`` or None; of input's dtype, or float32 for 16-bit input.
        training: use the statistics of the batch (biased variance); else the running ones.
        momentum: ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance.
        eps: added to the variance; > 0 in training.

    Raises:
        ValueError: one value per channel in training; eps out of range; one running statistic alone.
        RuntimeError: sizes, dtypes or devices that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    The mean is carried in double: the error stays near one float32 rounding for mean/std up to 1e6.

    Source: :func:`torch.nn.functional.batch_norm`; Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.

    Example:
        >>> y = convnorm.functional.batch_norm(torch.randn(8, 3, 4, 4), None, None, training=True)
    """
    return batch_norm_act(input, running_mean, running_var, weight, bias, training, momentum, eps, act=None)


def batch_norm_act(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
                   weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
                   momentum: float = 0.1, eps: float = 1e-05, *, act: str | None = "relu",
                   residual: Tensor | None = None) -> Tensor:
    """``act(batch_norm(input) + residual)`` in one pass; arguments and errors as :func:`batch_norm`.

    Args:
        act: ``"relu"`` or None.
        residual: of input's shape and dtype, or None.

    For the backward only ``input`` is kept (and with a residual the output): the relu mask is recomputed.

    Example:
        >>> y = convnorm.functional.batch_norm_act(x, None, None, training=True, residual=shortcut)
    """
    require_float("batch_norm", "input", input)
    if act not in ("relu", None):
        raise ValueError(f"batch_norm_act: act {act!r} must be 'relu' or None")
    relu = act == "relu"
    if not training:
        if running_mean is None or running_var is None:
            missing = "running_mean" if running_mean is None else "running_var"
            raise RuntimeError(f"batch_norm: {missing} must be defined in evaluation mode")
        return BatchNormEval.call(input, weight, bias, residual, running_mean, running_var, eps, relu)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    out, stats = BatchNormTrain.call(input, weight, bias, residual, eps, relu)
    if running_mean is not None:
        update_running(running_mean, running_var, stats, input, momentum)
    return out


# FX graphs keep each functional as one node.
for _name in __all__:
    torch.fx.wrap(_name)
