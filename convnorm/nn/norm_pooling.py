"""Batch norm, ReLU and max pooling as one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import functional as CF
from . import norm
from .conv_act import check_act
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .pooling import MaxPool1d, MaxPool2d, MaxPool3d

_Size = int | Sequence[int]

torch.fx.wrap("_normalise_and_pool")  # as nn.norm's: one node that holds the module


def _normalise_and_pool(self: _BatchNormActMaxPool, input: Tensor) -> Tensor:
    """torch's _BatchNorm.forward, with an activation and a pool."""
    self._check_input_dim(input)  # type: ignore[attr-defined]
    mean, var, training, momentum = norm.running_statistics(self)  # type: ignore[arg-type]
    return CF.batch_norm_act_max_pool(
        input, mean, var, self.weight, self.bias, training, momentum, self.eps, act=self.act, **self._window()
    )


class _BatchNormActMaxPool:
    """``max_pool(act(batch_norm(input)))``: mixed into BatchNormNd, whose state_dict it keeps."""

    _pool: ClassVar[type[nn.Module]]
    weight: nn.Parameter
    bias: nn.Parameter
    eps: float
    act: str | None

    def __init__(
        self,
        num_features: int,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        dilation: _Size = 1,
        ceil_mode: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        act: str | None = "relu",
        **factory: Any,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **factory)  # type: ignore[call-arg]
        check_act(self, act)
        self.act = act
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode

    def _window(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}

    def forward(self, input: Tensor) -> Tensor:
        return _normalise_and_pool(self, input)

    def pool(self) -> nn.Module:
        """The pooling alone, as a layer."""
        return self._pool(**self._window())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act!r}, {self.pool().extra_repr()}"  # type: ignore[misc]


class BatchNormActMaxPool1d(_BatchNormActMaxPool, BatchNorm1d):
    """Batch norm, ReLU and max pooling of ``(N, C, L)``; see :class:`BatchNormActMaxPool2d`."""

    _pool = MaxPool1d


class BatchNormActMaxPool2d(_BatchNormActMaxPool, BatchNorm2d):
    """Batch norm, then ReLU, then max pooling, in one pass: the stem of a ResNet, LeNet, VGG.

    What is normalised is pooled while it is in cache and never written to memory. The backward needs the input and one
    byte for each output; three layers keep the input, the activation (and of torch an int64 for each output).

    Args:
        num_features: C.
        kernel_size, stride, padding, dilation, ceil_mode: as :class:`torch.nn.MaxPool2d`.
        eps, momentum, affine, track_running_stats: as :class:`torch.nn.BatchNorm2d`.
        act: ``"relu"`` or None.

    Shape: ``(N, C, H, W)`` to ``(N, C, H', W')``; float32, float64, bfloat16 or float16; channels_last input gives
    channels_last output. The state_dict is BatchNorm2d's. Values and gradients are those of ``BatchNormAct2d`` and
    ``MaxPool2d``, bit for bit.

    Raises:
        ValueError: act is unknown; input of another rank; one value per channel in training.
        RuntimeError, NotImplementedError: as :func:`convnorm.functional.batch_norm_act_max_pool`.

    Example:
        >>> layer = convnorm.nn.BatchNormActMaxPool2d(64, 3, stride=2, padding=1)
        >>> y = layer(x)  # max_pool2d(relu(batch_norm(x)), 3, 2, 1)
    """

    _pool = MaxPool2d


class BatchNormActMaxPool3d(_BatchNormActMaxPool, BatchNorm3d):
    """Batch norm, ReLU and max pooling of ``(N, C, D, H, W)``; see :class:`BatchNormActMaxPool2d`."""

    _pool = MaxPool3d
