"""Functional API: the names, arguments and order of torch.nn.functional, computed by convnorm's kernels.

Each function normalises its arguments, applies autocast's rule and calls the op; the values are checked in C++.
"""

from __future__ import annotations

import torch

from ..ops._function import share_names
from .adaptive_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool1d_with_indices,
    adaptive_max_pool2d,
    adaptive_max_pool2d_with_indices,
    adaptive_max_pool3d,
    adaptive_max_pool3d_with_indices,
)
from .avg_pooling import avg_pool1d, avg_pool2d, avg_pool3d
from .conv import conv1d, conv1d_act, conv2d, conv2d_act, conv3d, conv3d_act
from .conv_transpose import conv_transpose1d, conv_transpose2d, conv_transpose3d
from .max_pooling import (
    max_pool1d,
    max_pool1d_with_indices,
    max_pool2d,
    max_pool2d_with_indices,
    max_pool3d,
    max_pool3d_with_indices,
)
from .norm import batch_norm, batch_norm_act
from .norm_pooling import batch_norm_act_max_pool
from .sample_norm import group_norm, instance_norm, layer_norm
from .unpooling import max_unpool1d, max_unpool2d, max_unpool3d

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "batch_norm_act",
    "batch_norm_act_max_pool",
    "conv1d",
    "conv1d_act",
    "conv2d",
    "conv2d_act",
    "conv3d",
    "conv3d_act",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]

# FX graphs keep each functional as one node. The modules call them as attributes of this package.
for _name in __all__:
    torch.fx.wrap(_name)

share_names()
