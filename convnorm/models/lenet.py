"""LeNet-5 in the form of the lecture notes, with batch norm where it helps training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LeNet5(torch.nn.Sequential):
    """Two convolution blocks and two linear layers for ``(N, 1, 28, 28)`` images.

    conv 20 @ 5x5 pad 2, [batch norm,] ReLU, max pool 2, conv 50 @ 5x5 pad 2, [batch norm,] ReLU, max pool 2,
    flatten (2450), linear 500, ReLU, linear ``classes``.

    Args:
        nn: where the layers come from: ``torch.nn`` or ``convnorm.nn``. A namespace that has
            ``BatchNormActMaxPool2d`` computes batch norm, ReLU and max pooling in one layer, which has the name of the
            batch norm; the state_dict is the same either way.
        norm: batch norm after each convolution; without it the network is the plain one.
        classes: number of outputs.

    Example:
        >>> LeNet5(convnorm.nn)(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, nn: Any = torch.nn, norm: bool = True, classes: int = 10) -> None:
        super().__init__()
        self._block(nn, 1, 1, 20, norm)
        self._block(nn, 2, 20, 50, norm)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(50 * 7 * 7, 500)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(500, classes)

    def _block(self, nn: Any, i: int, inputs: int, outputs: int, norm: bool) -> None:
        self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 5, padding=2))
        if norm and hasattr(nn, "BatchNormActMaxPool2d"):
            self.add_module(f"bn{i}", nn.BatchNormActMaxPool2d(outputs, 2))
            return
        if norm:
            self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
        self.add_module(f"relu{i}", nn.ReLU())
        self.add_module(f"pool{i}", nn.MaxPool2d(2))

    def forward(self, input: Tensor) -> Tensor:
        """Class scores ``(N, classes)``."""
        return super().forward(input)
