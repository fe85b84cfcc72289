"""Convolution modules: torch's own, with the forward computed by convnorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional as CF

torch.fx.wrap("_conv_transpose")  # one node that holds the module: output_size takes numbers, not proxies


class Conv1d(nn.Conv1d):
    """:class:`torch.nn.Conv1d` computed by :func:`convnorm.functional.conv1d`: same arguments, same state_dict."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return CF.conv1d(input, weight, bias, self.stride, 0, self.dilation, self.groups)
        return CF.conv1d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` computed by :func:`convnorm.functional.conv2d`: same arguments, same state_dict."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return CF.conv2d(input, weight, bias, self.stride, 0, self.dilation, self.groups)
        return CF.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Conv3d(nn.Conv3d):
    """:class:`torch.nn.Conv3d` computed by :func:`convnorm.functional.conv3d`: same arguments, same state_dict."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return CF.conv3d(input, weight, bias, self.stride, 0, self.dilation, self.groups)
        return CF.conv3d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


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
    """:class:`torch.nn.ConvTranspose1d` computed by :func:`convnorm.functional.conv_transpose1d`."""


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` computed by :func:`convnorm.functional.conv_transpose2d`."""


class ConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` computed by :func:`convnorm.functional.conv_transpose3d`."""
