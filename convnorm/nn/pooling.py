"""Pooling modules: torch's own, with the forward computed by convnorm."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional as CF


class MaxPool1d(nn.MaxPool1d):
    """:class:`torch.nn.MaxPool1d` computed by :func:`convnorm.functional.max_pool1d`: same arguments."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return CF.max_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class MaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d` computed by :func:`convnorm.functional.max_pool2d`: same arguments."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return CF.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class MaxPool3d(nn.MaxPool3d):
    """:class:`torch.nn.MaxPool3d` computed by :func:`convnorm.functional.max_pool3d`: same arguments."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return CF.max_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )
