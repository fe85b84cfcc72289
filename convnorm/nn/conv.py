"""Convolution modules: torch's own, with the forward computed by convnorm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional as CF
from .._packs import Packs
from ..functional.conv import frozen_conv

torch.fx.wrap("_conv_transpose")  # one node that holds the module: output_size takes numbers, not proxies


class FreezableConv:
    """What ConvNd adds to torch's: the forward, and weights that :func:`convnorm.freeze` lets it keep packed."""

    _packs: Packs | None = None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv: Any = self
        padding = conv.padding
        if conv.padding_mode != "zeros":
            input, padding = F.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0
        geometry, n = (conv.stride, padding, conv.dilation, conv.groups), len(conv.kernel_size)
        if self._packs is not None and self._packs.serve(input):
            return frozen_conv(f"conv{n}d", n, input, weight, bias, *geometry, None, None, self._packs)
        return getattr(CF, f"conv{n}d")(input, weight, bias, *geometry)


class Conv1d(FreezableConv, nn.Conv1d):
    """:class:`torch.nn.Conv1d` computed by :func:`convnorm.functional.conv1d`: same arguments, same state_dict.

    Shape: ``(N, C, L)`` or ``(C, L)`` to ``(N, K, L')`` or ``(K, L')``; see :class:`Conv2d`.
    """


class Conv2d(FreezableConv, nn.Conv2d):
    """:class:`torch.nn.Conv2d` computed by :func:`convnorm.functional.conv2d`: same arguments, same state_dict.

    Padding of other modes than zeros is made by :func:`torch.nn.functional.pad` first.

    Shape: ``(N, C, H, W)`` or ``(C, H, W)`` to ``(N, K, H', W')`` or ``(K, H', W')``; float32, float64, bfloat16 or
    float16; channels_last input (or weight) gives channels_last output.

    Raises:
        ValueError: arguments that do not fit each other, at construction.
        RuntimeError, NotImplementedError: as the functional.

    Source: :class:`torch.nn.Conv2d`, whose answers this reproduces.

    Example:
        >>> convnorm.nn.Conv2d(3, 10, 5, padding=2)(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 10, 32, 32])
    """


class Conv3d(FreezableConv, nn.Conv3d):
    """:class:`torch.nn.Conv3d` computed by :func:`convnorm.functional.conv3d`: same arguments, same state_dict.

    Shape: ``(N, C, D, H, W)`` or ``(C, D, H, W)``; see :class:`Conv2d`.
    """


def _conv_transpose(
    self: nn.modules.conv._ConvTransposeNd, input: Tensor, output_size: list[int] | None = None
) -> Tensor:
    """torch's rule for output_size, then our functional."""
    n = len(self.kernel_size)
    if self.padding_mode != "zeros":
        raise ValueError(f"Only `zeros` padding mode is supported for ConvTranspose{n}d")
    stride, padding, dilation = self.stride, self.padding, self.dilation
    assert not isinstance(padding, str)  # torch's constructor takes numbers only
    extra = self._output_padding(input, output_size, stride, padding, self.kernel_size, n, dilation)  # type: ignore[arg-type]
    functional = getattr(CF, f"conv_transpose{n}d")
    return functional(input, self.weight, self.bias, stride, padding, extra, self.groups, dilation)


class _Transposed(nn.modules.conv._ConvTransposeNd):
    """What the three transposed modules share."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _conv_transpose(self, input, output_size)


class ConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` computed by :func:`convnorm.functional.conv_transpose1d`.

    Shape: ``(N, C, L)`` or ``(C, L)`` to ``(N, K, L')`` or ``(K, L')``; see :class:`ConvTranspose2d`.
    """


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` computed by :func:`convnorm.functional.conv_transpose2d`: same arguments, same
    state_dict. Only ``padding_mode="zeros"``, as in torch.

    Shape: ``(N, C, H, W)`` or ``(C, H, W)`` to ``(N, K, H', W')`` or ``(K, H', W')``; the forward takes
    ``output_size`` to choose among the sizes that a stride leaves open. float32, float64, bfloat16 or float16;
    channels_last input gives channels_last output.

    Raises:
        ValueError: an ``output_size`` that is out of reach.
        RuntimeError, NotImplementedError: as the functional.

    Source: :class:`torch.nn.ConvTranspose2d`, whose answers this reproduces.

    Example:
        >>> convnorm.nn.ConvTranspose2d(8, 4, 2, stride=2)(torch.randn(1, 8, 7, 7)).shape
        torch.Size([1, 4, 14, 14])
    """


class ConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` computed by :func:`convnorm.functional.conv_transpose3d`.

    Shape: ``(N, C, D, H, W)`` or ``(C, D, H, W)``; see :class:`ConvTranspose2d`.
    """
