"""U-Net for images (Ronneberger and others 2015, https://arxiv.org/abs/1505.04597), padded, with batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


def _up(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Convolutions and max pooling down, transposed convolutions up, each level joined with its counterpart.

    Args:
        num_classes: channels of the output.
        width: channels of the first level; each further one has twice as many.
        channels: channels of the images.
        depth: how often the image is halved.

    Shape: ``(N, channels, H, W)`` to ``(N, num_classes, H, W)``; H and W divisible by ``2 ** depth``.

    Example:
        >>> UNet(num_classes=3, width=4, depth=2)(torch.randn(1, 1, 16, 24)).shape
        torch.Size([1, 3, 16, 24])
    """

    def __init__(self, num_classes: int = 2, width: int = 64, channels: int = 1, depth: int = 4) -> None:
        super().__init__()
        levels = [width << i for i in range(depth + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([channels, *levels], levels, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(_up(2 * c, c) for c in reversed(levels[:-1]))
        self.join = nn.ModuleList(_double(2 * c, c) for c in reversed(levels[:-1]))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores per pixel ``(N, num_classes, H, W)``."""
        skips = []
        for i, level in enumerate(self.down):
            x = level(self.pool(x) if i else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)
