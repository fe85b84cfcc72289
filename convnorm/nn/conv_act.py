"""Convolutions that end in a sum and ReLU, computed in one pass in inference."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .. import functional as CF
from ..functional.conv import frozen_conv
from .conv import Conv1d, Conv2d, Conv3d


def check_act(layer: Any, act: str | None) -> None:
    """Raise ValueError for an activation that the fused layers do not know."""
    if act not in ("relu", None):
        raise ValueError(f"{type(layer).__name__}: act {act!r} must be 'relu' or None")


class _ConvAct:
    """``act(conv(input) + residual)``: mixed into ConvNd, whose state_dict it keeps."""

    act: str | None

    def __init__(self, *args: Any, act: str | None = "relu", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_act(self, act)
        self.act = act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        conv: Any = self
        padding = conv.padding
        if conv.padding_mode != "zeros":
            input, padding = F.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0
        geometry, name = (conv.stride, padding, conv.dilation, conv.groups), f"conv{len(conv.kernel_size)}d_act"
        if conv._packs is not None and conv._packs.serve(input):
            operands = (input, conv.weight, conv.bias)
            return frozen_conv(name, len(conv.kernel_size), *operands, *geometry, residual, self.act, conv._packs)
        return getattr(CF, name)(input, conv.weight, conv.bias, *geometry, residual=residual, act=self.act)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act!r}"  # type: ignore[misc]


class ConvAct1d(_ConvAct, Conv1d):
    """Convolution, an optional residual, then ReLU, of ``(N, C, L)`` or ``(C, L)``; see :class:`ConvAct2d`."""


class ConvAct2d(_ConvAct, Conv2d):
    """``act(conv(input) + residual)`` in one pass: what :func:`convnorm.fold` and :func:`convnorm.fuse` make of a
    convolution whose batch norm was folded, a sum and a ReLU.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            :class:`torch.nn.Conv2d`.
        act: ``"relu"`` or None; by keyword.

    The forward takes ``(input, residual=None)``. One pass it is where no gradient is recorded (``torch.no_grad()``,
    ``torch.inference_mode()``); else convolution, sum and ReLU, with gradients of any order.

    Shape: as :class:`Conv2d`; residual of the output's shape. The state_dict is Conv2d's.

    Raises:
        ValueError: act is unknown, or as Conv2d.
        RuntimeError, NotImplementedError: as :func:`convnorm.functional.conv2d_act`.

    Example:
        >>> layer = convnorm.nn.ConvAct2d(64, 64, 3, padding=1)
        >>> with torch.no_grad():
        ...     y = layer(x, shortcut)  # relu(conv(x) + shortcut)
    """


class ConvAct3d(_ConvAct, Conv3d):
    """Convolution, an optional residual, then ReLU, of ``(N, C, D, H, W)`` or ``(C, D, H, W)``; see
    :class:`ConvAct2d`.
    """
