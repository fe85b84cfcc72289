"""Layers that torch spells as two or three modules, computed in one pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import norm
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d


class _BatchNormAct:
    """``act(batch_norm(input) + residual)``: mixed into BatchNormNd, whose state_dict it keeps."""

    act: str | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        act: str | None = "relu",
        **factory: Any,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **factory)  # type: ignore[call-arg]
        if act not in ("relu", None):
            raise ValueError(f"{type(self).__name__}: act {act!r} must be 'relu' or None")
        self.act = act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return norm._batch_norm(self, input, self.act, residual)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act!r}"  # type: ignore[misc]


class BatchNormAct1d(_BatchNormAct, BatchNorm1d):
    """Batch norm, then ReLU, of ``(N, C)`` or ``(N, C, L)``; see :class:`BatchNormAct2d`."""


class BatchNormAct2d(_BatchNormAct, BatchNorm2d):
    """Batch norm, an optional residual, then ReLU, in one pass; the backward recomputes the mask.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as :class:`torch.nn.BatchNorm2d`.
        act: ``"relu"`` or None.

    Shape: input, residual and output ``(N, C, H, W)``. The state_dict is BatchNorm2d's.

    Example:
        >>> layer = convnorm.nn.BatchNormAct2d(64)
        >>> y = layer(x, residual=shortcut)  # relu(batch_norm(x) + shortcut)
    """


class BatchNormAct3d(_BatchNormAct, BatchNorm3d):
    """Batch norm, then ReLU, of ``(N, C, D, H, W)``; see :class:`BatchNormAct2d`."""
