"""Functional API: the names, arguments and order of torch.nn.functional, computed by convnorm's kernels.

Each function normalises its arguments, applies autocast's rule and calls the op; the values are checked in C++.
"""

from __future__ import annotations

import torch

from .conv import conv1d, conv2d, conv3d
from .norm import batch_norm, batch_norm_act
from .pooling import (
    max_pool1d,
    max_pool1d_with_indices,
    max_pool2d,
    max_pool2d_with_indices,
    max_pool3d,
    max_pool3d_with_indices,
)
from .sample_norm import group_norm, instance_norm, layer_norm

__all__ = [
    "batch_norm",
    "batch_norm_act",
    "conv1d",
    "conv2d",
    "conv3d",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
]

# FX graphs keep each functional as one node. The modules call them as attributes of this package.
for _name in __all__:
    torch.fx.wrap(_name)
