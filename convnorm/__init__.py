"""convnorm: convolution, pooling and normalization for PyTorch in hand-written C++.

``convnorm.convert(model)`` swaps the layers of a model; ``convnorm.nn`` and ``convnorm.functional`` are torch's names.
"""

from __future__ import annotations

import torch  # noqa: F401  (its libraries must be loaded before _C)

from . import _C

__version__ = _C.build_info()["version"]

from . import analysis, backends, data, distributed, flops, functional, models, nn, onnx
from .convert import conversion_report, convert, revert
from .explain import explain
from .fold import fold
from .freeze import freeze, unfreeze
from .fuse import fuse

__all__ = [
    "__version__",
    "analysis",
    "backends",
    "conversion_report",
    "convert",
    "data",
    "distributed",
    "explain",
    "flops",
    "fold",
    "freeze",
    "functional",
    "fuse",
    "models",
    "nn",
    "onnx",
    "revert",
    "unfreeze",
]
