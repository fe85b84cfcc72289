"""A picture of the filters of a convolution layer: they are templates of what the layer looks for."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

_GAP = 1  # pixels between filters, before scaling


def _weights(layer: nn.Module | Tensor) -> Tensor:
    weight = layer if isinstance(layer, Tensor) else getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        what = f"a weight of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(layer).__name__
        raise ValueError(f"filters_image: layer is {what}, must be a 2-d convolution or (out, in, k_h, k_w)")
    if not weight.numel():
        raise ValueError(f"filters_image: layer has a weight of shape {tuple(weight.shape)}, must not be empty")
    return weight.detach().float()


def filters_image(layer: nn.Module | Tensor, path: str | Path | None = None, columns: int | None = None,
                  scale: int = 8, each: bool = True) -> Tensor:
    """The filters of a 2-d convolution side by side.

    Filters of three channels are shown in colour, all others in grey with one tile per channel (a row is then one
    filter). Zero is the middle grey, whatever the range of the weights.

    Args:
        layer: a convolution layer, or its weight ``(out, in, k_h, k_w)``.
        path: also write the image there (needs Pillow, which comes with matplotlib); the suffix says the format.
        columns: tiles in a row; by default about as many as rows, or one per channel.
        scale: pixels per weight.
        each: scale every filter to the full range on its own; else all by the largest weight of the layer.

    Returns:
        uint8 ``(height, width, 3)`` for three channels, else ``(height, width)``, 0 (black) to 255.

    Raises:
        ValueError: not a 2-d convolution, an empty weight, or ``columns`` or ``scale`` below 1.

    Example:
        >>> convnorm.analysis.filters_image(torch.nn.Conv2d(3, 16, 7), "filters.png").shape
        torch.Size([264, 264, 3])
    """
    weight = _weights(layer)
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise ValueError(f"filters_image: {name} {value} must be at least 1")
    count, channels, k_h, k_w = weight.shape
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True) if each else weight.abs().max()
    shades = (127.5 + 127.5 * weight / torch.clamp(largest, min=torch.finfo(torch.float32).tiny)).round()
    tiles = shades.permute(0, 2, 3, 1) if channels == 3 else shades.reshape(-1, k_h, k_w, 1)
    columns = columns or (channels if channels not in (1, 3) else math.ceil(math.sqrt(count)))
    rows = -(-len(tiles) // columns)
    h, w = k_h + _GAP, k_w + _GAP
    canvas = torch.full((rows * h + _GAP, columns * w + _GAP, tiles.shape[-1]), 255.0)
    for i, tile in enumerate(tiles):
        y, x = i // columns * h + _GAP, i % columns * w + _GAP
        canvas[y : y + k_h, x : x + k_w] = tile
    image = canvas.repeat_interleave(scale, 0).repeat_interleave(scale, 1).to(torch.uint8)
    image = image if channels == 3 else image[..., 0]
    if path is not None:
        from PIL import Image

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
    return image
