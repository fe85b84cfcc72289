"""Transposed convolutions under torch.nn.functional's names: the gradient by input of a convolution, as a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._args import add_batch, autocast_lower, ntuple, require_float
from ..ops.conv import ConvByInput

_Size = int | Sequence[int]


def _check(
    op: str,
    n: int,
    x: Tensor,
    weight: Tensor,
    extra: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """The rules of the transposed direction; those it shares with the convolution are checked in C++."""
    if x.dim() == n + 2 and x.shape[1] != weight.shape[0]:
        got = f"input of {x.shape[1]} channels and weight of size {list(weight.shape)}"
        raise RuntimeError(f"{op}: {got}: weight must have a filter for each input channel")
    if groups < 1 or weight.shape[0] % groups:
        raise RuntimeError(f"{op}: groups ({groups}) must be >= 1 and divide the {weight.shape[0]} input channels")
    for e, s, d in zip(extra, stride, dilation, strict=True):
        if e < 0 or e >= max(s, d):
            rule = f"must be >= 0 and smaller than stride ({s}) or dilation ({d})"
            raise RuntimeError(f"{op}: output_padding ({e}) {rule}")


def _conv_transpose(
    op: str,
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Size,
    padding: _Size,
    output_padding: _Size,
    groups: int,
    dilation: _Size,
) -> Tensor:
    require_float(op, "input", input)
    if weight.dim() != n + 2:
        raise RuntimeError(f"{op}: weight of size {list(weight.shape)} must have {n + 2} dimensions")
    strides, pads, dilations = (
        ntuple(op, name, value, n) for name, value in (("stride", stride), ("padding", padding), ("dilation", dilation))
    )
    extra = ntuple(op, "output_padding", output_padding, n)
    x, unbatched = add_batch(op, input, n)
    _check(op, n, x, weight, extra, strides, dilations, groups)
    x, weight, bias = autocast_lower(x.device, x, weight, bias)  # type: ignore[assignment]
    channels = weight.shape[1] * groups
    if bias is not None and bias.shape != (channels,):
        raise RuntimeError(f"{op}: bias of size {list(bias.shape)} must be of size [{channels}]")
    # Positions beyond the last window, where dilation exceeds stride, receive nothing but the bias.
    inner = [min(e, s - 1) for e, s in zip(extra, strides, strict=True)]
    size = [
        (x.shape[2 + i] - 1) * strides[i] - 2 * pads[i] + dilations[i] * (weight.shape[2 + i] - 1) + inner[i] + 1
        for i in range(n)
    ]
    if min(size) < 1:
        raise RuntimeError(f"{op}: output of size {size} is too small: every extent must be >= 1")
    out = ConvByInput.call(x, weight, [x.shape[0], channels, *size], strides, pads * 2, dilations, groups)
    if inner != list(extra):
        out = torch.nn.functional.pad(
            out, [v for e, i in zip(extra[::-1], inner[::-1], strict=True) for v in (0, e - i)]
        )
    if bias is not None:
        out = out + bias.view(-1, *(1,) * n)
    return out.squeeze(0) if unbatched else out


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size = 0,
    output_padding: _Size = 0,
    groups: int = 1,
    dilation: _Size = 1,
) -> Tensor:
    """1d transposed convolution; see :func:`conv_transpose2d`, with one spatial dimension."""
    return _conv_transpose(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size = 0,
    output_padding: _Size = 0,
    groups: int = 1,
    dilation: _Size = 1,
) -> Tensor:
    """2d transposed convolution: the image whose convolution with ``weight`` has the gradient ``input``.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float32, float64, bfloat16 or float16; any strides.
            channels_last input (or weight) gives channels_last output.
        weight: ``(C, K / groups, kH, kW)``.
        bias: ``(K,)`` or None.
        stride, dilation: int or 2 ints, >= 1.
        padding: int or 2 ints >= 0: so much is cut off on both sides.
        output_padding: int or 2 ints, smaller than stride or dilation: rows and columns added at the far sides.
        groups: divides C and K.

    Returns:
        ``(N, K, H', W')`` with ``H' = (H - 1)*stride - 2*padding + dilation*(kH - 1) + output_padding + 1``.

    Raises:
        RuntimeError: shapes, dtypes, devices or arguments that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    Source: :func:`torch.nn.functional.conv_transpose2d`, whose answers this reproduces.

    Example:
        >>> convnorm.functional.conv_transpose2d(torch.randn(1, 8, 7, 7), torch.randn(8, 4, 2, 2), stride=2).shape
        torch.Size([1, 4, 14, 14])
    """
    return _conv_transpose(
        "conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Size = 1,
    padding: _Size = 0,
    output_padding: _Size = 0,
    groups: int = 1,
    dilation: _Size = 1,
) -> Tensor:
    """3d transposed convolution; see :func:`conv_transpose2d`, with three spatial dimensions (D, H, W)."""
    return _conv_transpose(
        "conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )
