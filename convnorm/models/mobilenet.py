"""MobileNetV2 (Sandler and others 2018, https://arxiv.org/abs/1801.04381), with torchvision's parameter names."""

from __future__ import annotations

from torch import Tensor, nn

# (expansion, channels at full width, blocks, stride of the first block), as in table 2 of the paper
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _channels(full: int, width: float) -> int:
    """The nearest multiple of 8 to ``full * width``, but not below 9/10 of it."""
    wanted = full * width
    found = max(8, int(wanted + 4) // 8 * 8)
    return found if found >= 0.9 * wanted else found + 8


def _conv_norm_act(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise 3x3, 1x1 to few channels without activation; a shortcut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        layers = [] if expansion == 1 else [_conv_norm_act(inputs, hidden, 1)]
        layers.append(_conv_norm_act(hidden, hidden, 3, stride, groups=hidden))
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``x + convolutions(x)``, or the convolutions alone."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """A stem, 17 inverted residuals, a 1x1 convolution, global average pooling and a linear layer.

    Args:
        num_classes: number of outputs.
        width: factor on the channels of every layer, which are then rounded to multiples of 8.
        channels: channels of the images.

    Shape: ``(N, channels, H, W)`` to ``(N, num_classes)``; the last stage has 1/32 of H and W, rounded up.

    Example:
        >>> MobileNetV2(num_classes=10, width=0.1)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0, channels: int = 3) -> None:
        super().__init__()
        inputs, last = _channels(32, width), _channels(1280, width)
        layers: list[nn.Module] = [_conv_norm_act(channels, inputs, 3, stride=2)]
        for expansion, full, blocks, stride in _STAGES:
            for i in range(blocks):
                outputs = _channels(full, width)
                layers.append(InvertedResidual(inputs, outputs, 1 if i else stride, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, _conv_norm_act(inputs, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``(N, num_classes)``."""
        return self.classifier(self.features(x).mean((2, 3)))
