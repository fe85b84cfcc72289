"""VGG with batch norm (Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556), with torchvision's names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

_BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Blocks of 3x3 convolutions with batch norm and ReLU, each closed by max pooling; then three linear layers.

    Args:
        blocks: convolutions in each block.
        num_classes: number of outputs.
        width: channels of the first block; they double up to eight times that. The linear layers have 64 times.
        channels: channels of the images.

    Shape: ``(N, channels, H, W)`` to ``(N, num_classes)``; H and W at least ``2 ** len(blocks)``.
    """

    def __init__(self, blocks: Sequence[int], num_classes: int = 1000, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for i, count in enumerate(blocks):
            outputs = width << min(i, 3)
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = 64 * width
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 7 * 7, hidden), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``(N, num_classes)``."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def vgg_bn(depth: int = 16, num_classes: int = 1000, width: int = 64, channels: int = 3) -> VGG:
    """VGG-11, 13, 16 or 19 with batch norm: ``depth`` counts convolutions and linear layers.

    Raises:
        ValueError: another depth.

    Example:
        >>> vgg_bn(11, num_classes=10, width=4)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if depth not in _BLOCKS:
        raise ValueError(f"vgg_bn: depth {depth} must be one of {tuple(_BLOCKS)}")
    return VGG(_BLOCKS[depth], num_classes, width, channels)
