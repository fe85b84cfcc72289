"""Normalization modules: torch's own, with the forward computed by convnorm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import functional as CF

torch.fx.wrap("_batch_norm")  # one node that holds the module: its checks, its counter and its mode stay alive


def running_statistics(
    self: nn.modules.batchnorm._BatchNorm,
) -> tuple[Tensor | None, Tensor | None, bool, float]:
    """(mean, variance, whether to use those of the batch, momentum) of a call, which is counted."""
    momentum = 0.0 if self.momentum is None else self.momentum
    if self.training and self.track_running_stats and self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:  # cumulative moving average
            momentum = 1.0 / float(self.num_batches_tracked)
    training = self.training or (self.running_mean is None and self.running_var is None)
    use_buffers = not self.training or self.track_running_stats
    mean, var = (self.running_mean, self.running_var) if use_buffers else (None, None)
    return mean, var, training, momentum


def _batch_norm(
    self: nn.modules.batchnorm._BatchNorm,
    input: Tensor,
    act: str | None,
    residual: Tensor | None,
    function: Callable[..., Tensor] = CF.batch_norm_act,
) -> Tensor:
    """torch's _BatchNorm.forward, with an activation and a residual, by ``function``."""
    self._check_input_dim(input)
    mean, var, training, momentum = running_statistics(self)
    return function(
        input, mean, var, self.weight, self.bias, training, momentum, self.eps, act=act, residual=residual
    )


class BatchNorm1d(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` by :func:`convnorm.functional.batch_norm`: same arguments, same state_dict.

    Shape: ``(N, C)`` or ``(N, C, L)``, input and output; see :class:`BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input, None, None)


class BatchNorm2d(nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` by :func:`convnorm.functional.batch_norm`: same arguments, same state_dict.

    Shape: ``(N, C, H, W)``, input and output; float32, float64, bfloat16 or float16 (parameters of that dtype,
    or float32 for 16-bit input); channels_last input gives channels_last output.

    Raises:
        ValueError: input of another rank; one value per channel in training.
        RuntimeError, NotImplementedError: as the functional.

    Source: :class:`torch.nn.BatchNorm2d`, whose running statistics, counter and ``momentum=None`` this keeps.

    Example:
        >>> convnorm.nn.BatchNorm2d(64)(torch.randn(8, 64, 28, 28)).shape
        torch.Size([8, 64, 28, 28])
    """

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input, None, None)


class BatchNorm3d(nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` by :func:`convnorm.functional.batch_norm`: same arguments, same state_dict.

    Shape: ``(N, C, D, H, W)``, input and output; see :class:`BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input, None, None)
