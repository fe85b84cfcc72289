"""Pooling modules: torch's own, with the forward computed by convnorm."""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional as CF


class MaxPool1d(nn.MaxPool1d):
    """:class:`torch.nn.MaxPool1d` computed by :func:`convnorm.functional.max_pool1d`: same arguments.

    Shape: ``(N, C, L)`` or ``(C, L)`` to ``(N, C, L')`` or ``(C, L')``; see :class:`MaxPool2d`.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        window = self.kernel_size, self.stride, self.padding, self.dilation
        return CF.max_pool1d(input, *window, self.ceil_mode, self.return_indices)


class MaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d` computed by :func:`convnorm.functional.max_pool2d`: same arguments.

    Shape: ``(N, C, H, W)`` or ``(C, H, W)`` to ``(N, C, H', W')`` or ``(C, H', W')``, with ``return_indices`` a
    pair of these; float32, float64, bfloat16 or float16; channels_last input gives channels_last output.

    Source: :class:`torch.nn.MaxPool2d`, whose answers and indices this reproduces exactly.

    Example:
        >>> convnorm.nn.MaxPool2d(3, stride=2, padding=1)(torch.randn(1, 64, 112, 112)).shape
        torch.Size([1, 64, 56, 56])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        window = self.kernel_size, self.stride, self.padding, self.dilation
        return CF.max_pool2d(input, *window, self.ceil_mode, self.return_indices)


class MaxPool3d(nn.MaxPool3d):
    """:class:`torch.nn.MaxPool3d` computed by :func:`convnorm.functional.max_pool3d`: same arguments.

    Shape: ``(N, C, D, H, W)`` or ``(C, D, H, W)``; see :class:`MaxPool2d`.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        window = self.kernel_size, self.stride, self.padding, self.dilation
        return CF.max_pool3d(input, *window, self.ceil_mode, self.return_indices)


class AvgPool1d(nn.AvgPool1d):
    """:class:`torch.nn.AvgPool1d` computed by :func:`convnorm.functional.avg_pool1d`: same arguments.

    Shape: ``(N, C, L)`` or ``(C, L)`` to ``(N, C, L')`` or ``(C, L')``; see :class:`AvgPool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        window = self.kernel_size, self.stride, self.padding
        return CF.avg_pool1d(input, *window, self.ceil_mode, self.count_include_pad)


class AvgPool2d(nn.AvgPool2d):
    """:class:`torch.nn.AvgPool2d` computed by :func:`convnorm.functional.avg_pool2d`: same arguments.

    Shape: ``(N, C, H, W)`` or ``(C, H, W)`` to ``(N, C, H', W')`` or ``(C, H', W')``; float32, float64, bfloat16 or
    float16; channels_last input gives channels_last output.

    Source: :class:`torch.nn.AvgPool2d`, whose answers this reproduces.

    Example:
        >>> convnorm.nn.AvgPool2d(2)(torch.randn(1, 64, 112, 112)).shape
        torch.Size([1, 64, 56, 56])
    """

    def forward(self, input: Tensor) -> Tensor:
        window = self.kernel_size, self.stride, self.padding
        return CF.avg_pool2d(input, *window, self.ceil_mode, self.count_include_pad, self.divisor_override)


class AvgPool3d(nn.AvgPool3d):
    """:class:`torch.nn.AvgPool3d` computed by :func:`convnorm.functional.avg_pool3d`: same arguments.

    Shape: ``(N, C, D, H, W)`` or ``(C, D, H, W)``; see :class:`AvgPool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        window = self.kernel_size, self.stride, self.padding
        return CF.avg_pool3d(input, *window, self.ceil_mode, self.count_include_pad, self.divisor_override)


class AdaptiveAvgPool1d(nn.AdaptiveAvgPool1d):
    """:class:`torch.nn.AdaptiveAvgPool1d` computed by :func:`convnorm.functional.adaptive_avg_pool1d`: same arguments.

    Shape: ``(N, C, L)`` or ``(C, L)`` to the same with ``output_size``; see :class:`AdaptiveAvgPool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return CF.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """:class:`torch.nn.AdaptiveAvgPool2d` computed by :func:`convnorm.functional.adaptive_avg_pool2d`: same arguments.

    Shape: ``(N, C, H, W)`` or ``(C, H, W)`` to the same with ``output_size``; float32, float64, bfloat16 or float16;
    channels_last input gives channels_last output.

    Source: :class:`torch.nn.AdaptiveAvgPool2d`, whose answers this reproduces.

    Example:
        >>> convnorm.nn.AdaptiveAvgPool2d((1, None))(torch.randn(1, 512, 7, 7)).shape
        torch.Size([1, 512, 1, 7])
    """

    def forward(self, input: Tensor) -> Tensor:
        return CF.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(nn.AdaptiveAvgPool3d):
    """:class:`torch.nn.AdaptiveAvgPool3d` computed by :func:`convnorm.functional.adaptive_avg_pool3d`: same arguments.

    Shape: ``(N, C, D, H, W)`` or ``(C, D, H, W)`` to the same with ``output_size``; see :class:`AdaptiveAvgPool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return CF.adaptive_avg_pool3d(input, self.output_size)


class AdaptiveMaxPool1d(nn.AdaptiveMaxPool1d):
    """:class:`torch.nn.AdaptiveMaxPool1d` computed by :func:`convnorm.functional.adaptive_max_pool1d`: same arguments.

    Shape: ``(N, C, L)`` or ``(C, L)`` to the same with ``output_size``; see :class:`AdaptiveMaxPool2d`.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return CF.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    """:class:`torch.nn.AdaptiveMaxPool2d` computed by :func:`convnorm.functional.adaptive_max_pool2d`: same arguments.

    Shape: ``(N, C, H, W)`` or ``(C, H, W)`` to the same with ``output_size``, with ``return_indices`` a pair of
    these; float32, float64, bfloat16 or float16; channels_last input gives channels_last output.

    Source: :class:`torch.nn.AdaptiveMaxPool2d`, whose answers and indices this reproduces exactly.

    Example:
        >>> convnorm.nn.AdaptiveMaxPool2d(7)(torch.randn(1, 512, 14, 14)).shape
        torch.Size([1, 512, 7, 7])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return CF.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(nn.AdaptiveMaxPool3d):
    """:class:`torch.nn.AdaptiveMaxPool3d` computed by :func:`convnorm.functional.adaptive_max_pool3d`: same arguments.

    Shape: ``(N, C, D, H, W)`` or ``(C, D, H, W)`` to the same with ``output_size``; see :class:`AdaptiveMaxPool2d`.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return CF.adaptive_max_pool3d(input, self.output_size, self.return_indices)


class MaxUnpool1d(nn.MaxUnpool1d):
    """:class:`torch.nn.MaxUnpool1d` computed by :func:`convnorm.functional.max_unpool1d`: same arguments.

    Shape: ``(N, C, L)`` or ``(C, L)`` to ``(N, C, L')`` or ``(C, L')``; see :class:`MaxUnpool2d`.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return CF.max_unpool1d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool2d(nn.MaxUnpool2d):
    """:class:`torch.nn.MaxUnpool2d` computed by :func:`convnorm.functional.max_unpool2d`: same arguments.

    Shape: input and indices (int64) ``(N, C, H, W)`` or ``(C, H, W)``, to ``(N, C, H', W')`` or ``(C, H',
    W')``; the forward takes ``output_size``. float32, float64, bfloat16 or float16; channels_last input gives
    channels_last output.

    Source: :class:`torch.nn.MaxUnpool2d`; of several values at one index the last stays, in every run.

    Example:
        >>> y, indices = convnorm.nn.MaxPool2d(2, return_indices=True)(torch.randn(1, 3, 8, 8))
        >>> convnorm.nn.MaxUnpool2d(2)(y, indices).shape
        torch.Size([1, 3, 8, 8])
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return CF.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool3d(nn.MaxUnpool3d):
    """:class:`torch.nn.MaxUnpool3d` computed by :func:`convnorm.functional.max_unpool3d`: same arguments.

    Shape: ``(N, C, D, H, W)`` or ``(C, D, H, W)``; see :class:`MaxUnpool2d`.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return CF.max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)
