"""Convolution modules: torch's own, with the forward computed by convnorm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional as CF


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
