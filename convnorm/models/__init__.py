"""Small reference networks, each one definition that torch.nn or convnorm.nn can fill."""

from .lenet import LeNet5

__all__ = ["LeNet5"]
