"""What stands around a layer's own forward."""

from __future__ import annotations

from torch import nn


def hooked(module: nn.Module) -> bool:
    """Whether hooks see what a module is given or what it returns."""
    return bool(module._forward_hooks or module._forward_pre_hooks
                or module._backward_hooks or module._backward_pre_hooks)  # fmt: skip
