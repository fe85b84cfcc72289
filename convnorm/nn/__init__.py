"""Drop-in modules: ``import convnorm.nn as nn`` where a script says ``import torch.nn as nn``.

Names that convnorm has no kernel for are torch.nn's own.
"""

from __future__ import annotations

from typing import Any

from torch import nn as _torch_nn

from .conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .conv_act import ConvAct1d, ConvAct2d, ConvAct3d
from .fused import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d, ConvNormAct1d, ConvNormAct2d, ConvNormAct3d
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .norm_pooling import BatchNormActMaxPool1d, BatchNormActMaxPool2d, BatchNormActMaxPool3d
from .pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
)
from .sample_norm import GroupNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, LayerNorm
from .sync_batch_norm import SyncBatchNorm

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "BatchNormActMaxPool1d",
    "BatchNormActMaxPool2d",
    "BatchNormActMaxPool3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvAct1d",
    "ConvAct2d",
    "ConvAct3d",
    "ConvNormAct1d",
    "ConvNormAct2d",
    "ConvNormAct3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "SyncBatchNorm",
]


def __getattr__(name: str) -> Any:
    return getattr(_torch_nn, name)
