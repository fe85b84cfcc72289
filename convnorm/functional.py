"""Functional API: the names, arguments and order of torch.nn.functional, computed by convnorm's kernels.

Each function normalises its arguments, applies autocast's rule and calls the op; the values are checked in C++.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._args import add_batch, autocast_lower, ntuple, require_float
from .ops._function import transforms_active
from .ops.batch_norm import BatchNormEval, BatchNormTrain, update_running
from .ops.conv import Conv
from .ops.max_pool import INDICES, NOTHING, OFFSETS, MaxPool

__all__ = [
    "conv1d", "conv2d", "conv3d",
    "max_pool1d", "max_pool1d_with_indices", "max_pool2d", "max_pool2d_with_indices", "max_pool3d",
    "max_pool3d_with_indices",
    "batch_norm", "batch_norm_act",
]

_Size = int | Sequence[int]


def _same_padding(op: str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    if any(s != 1 for s in stride):
        got = tuple(stride)
        raise RuntimeError(f"{op}: padding='same' is not supported for strided convolutions, got stride {got}")
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


# --- max pooling ----------------------------------------------------------------------------------------------------


def _derivative_wanted(input: Tensor) -> bool:
    """True when something may later ask for a derivative with respect to input."""
    if torch.is_grad_enabled() and input.requires_grad:
        return True
    return not torch.compiler.is_compiling() and (transforms_active() or forward_ad._current_level >= 0)


def _max_pool(n: int, input: Tensor, kernel_size: _Size, stride: _Size | None, padding: _Size, dilation: _Size,
              ceil_mode: bool, return_indices: bool) -> Tensor | tuple[Tensor, Tensor]:
    op = f"max_pool{n}d"
    require_float(op, "input", input)
    kernel = ntuple(op, "kernel_size", kernel_size, n)
    given = stride is not None and (isinstance(stride, (int, torch.SymInt)) or len(stride) > 0)
    strides = ntuple(op, "stride", stride, n) if given else kernel  # type: ignore[arg-type]
    x, unbatched = add_batch(op, input, n)
    record = INDICES if return_indices else OFFSETS if _derivative_wanted(input) else NOTHING
    call = MaxPool.call if record else MaxPool.forward
    out, argmax = call(x, kernel, strides, ntuple(op, "padding", padding, n), ntuple(op, "dilation", dilation, n),
                       bool(ceil_mode), record)
    if unbatched:
        out = out.squeeze(0)
    if not return_indices:
        return out
    return out, argmax.squeeze(0) if unbatched else argmax


def max_pool1d(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
               dilation: _Size = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """1d max pooling; see :func:`max_pool2d`, with one spatial dimension."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
               dilation: _Size = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window: of equal values the first, of NaNs the last; padding never wins.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float32, float64, bfloat16 or float16; any strides.
            channels_last input gives channels_last output.
        kernel_size: int or 2 ints, >= 1.
        stride: int or 2 ints, >= 1; None or ``[]`` means kernel_size.
        padding: int or 2 ints, 0 to kernel_size / 2, of -inf on both sides.
        dilation: int or 2 ints, >= 1.
        ceil_mode: rounds the output size up; a window that would start in the high padding is dropped.
        return_indices: also returns, as int64, where in the plane each maximum was: ``h * W + w``.

    Returns:
        ``(N, C, H', W')`` with ``H' = floor((H + 2*padding - dilation*(kH-1) - 1) / stride) + 1`` (ceil with
        ceil_mode), or (output, indices) of that size. For the backward one byte per output is kept (4 bytes when the
        window has more than 256 positions).

    Raises:
        RuntimeError: shapes or arguments that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    Source: :func:`torch.nn.functional.max_pool2d`, whose answers and indices this reproduces exactly.

    Example:
        >>> convnorm.functional.max_pool2d(torch.randn(1, 64, 112, 112), 3, stride=2, padding=1).shape
        torch.Size([1, 64, 56, 56])
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
               dilation: _Size = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """3d max pooling; see :func:`max_pool2d`, with three spatial dimensions (D, H, W)."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d_with_indices(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
                            dilation: _Size = 1, ceil_mode: bool = False,
                            return_indices: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`max_pool1d` with ``return_indices=True``, whatever the last argument says (as in torch)."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, True)  # type: ignore[return-value]


def max_pool2d_with_indices(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
                            dilation: _Size = 1, ceil_mode: bool = False,
                            return_indices: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`max_pool2d` with ``return_indices=True``, whatever the last argument says (as in torch)."""
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, True)  # type: ignore[return-value]


def max_pool3d_with_indices(input: Tensor, kernel_size: _Size, stride: _Size | None = None, padding: _Size = 0,
                            dilation: _Size = 1, ceil_mode: bool = False,
                            return_indices: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`max_pool3d` with ``return_indices=True``, whatever the last argument says (as in torch)."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, True)  # type: ignore[return-value]


# --- batch norm -------------------------------------------------------------------------------------------------


def batch_norm(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
               bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
               eps: float = 1e-05) -> Tensor:
    """Batch normalization: each channel to zero mean and unit variance, then ``weight * xhat + bias``.

    Args:
        input: ``(N, C)``, ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``; float32, float64, bfloat16 or float16;
            any strides. channels_last input gives channels_last output.
        running_mean, running_var: ``(C,)``, both or neither; updated in place in training, used in evaluation.
        weight, bias: ``(C,)`` or None; of input's dtype, or float32 for 16-bit input.
        training: use the statistics of the batch (biased variance); else the running ones.
        momentum: ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance.
        eps: added to the variance; > 0 in training.

    Raises:
        ValueError: one value per channel in training; eps out of range; one running statistic without the other.
        RuntimeError: sizes, dtypes or devices that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    The mean is carried in double: the error stays near one float32 rounding for mean/std up to 1e6.

    Source: :func:`torch.nn.functional.batch_norm`; Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.

    Example:
        >>> convnorm.functional.batch_norm(torch.randn(8, 3, 4, 4), None, None, training=True).mean().abs() < 1e-6
        tensor(True)
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
        raise ValueError("batch_norm: running_mean and running_var must either both be None or neither be None")
    out, stats = BatchNormTrain.call(input, weight, bias, residual, eps, relu)
    if running_mean is not None:
        update_running(running_mean, running_var, stats, input.numel() // max(input.shape[1], 1), momentum)
    return out


# FX graphs keep each functional as one node.
for _name in __all__:
    torch.fx.wrap(_name)
