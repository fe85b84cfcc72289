"""The convolution of signal processing, beside the cross-correlation that networks call by its name."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..functional import conv2d

MODES = ("full", "same", "valid")


def convolve2d(image: Tensor, kernel: Tensor, mode: str = "full") -> Tensor:
    """True 2-d convolution, ``out[i, j] = sum_ab kernel[a, b] * image[i - a, j - b]``, zeros outside of the image.

    ``conv2d`` of a network does not turn its filter: it is the cross-correlation. Convolution is the same with the
    kernel turned by 180 degrees, ``convolve2d(x, w, "valid") == conv2d(x, w.flip(-1, -2))``, and that is how this
    function computes it, with convnorm's own kernel. Modes, sizes and the exchange of the operands in ``'valid'``
    follow scipy.signal.convolve2d with its default boundary.

    Args:
        image: ``(h, w)``, floating point, any layout.
        kernel: ``(k_h, k_w)``, of the same dtype.
        mode: ``'full'``: every position where the two overlap, ``(h + k_h - 1, w + k_w - 1)``;
            ``'same'``: the middle of that, of the image's size;
            ``'valid'``: where neither needs zeros, ``(h - k_h + 1, w - k_w + 1)``; one operand must fit in the other.

    Raises:
        ValueError: an unknown mode, an operand that is not 2-d or is empty, or operands of which neither fits in
            the other in ``'valid'``.

    Example:
        >>> convolve2d(torch.eye(3), torch.ones(2, 2), "valid")
        tensor([[2., 1.],
                [1., 2.]])
    """
    if mode not in MODES:
        raise ValueError(f"convolve2d: mode {mode!r} must be one of {', '.join(map(repr, MODES))}")
    for name, t in (("image", image), ("kernel", kernel)):
        if t.dim() != 2 or not t.numel():
            raise ValueError(f"convolve2d: {name} has shape {tuple(t.shape)}, must be (height, width), at least 1 x 1")
    if mode == "valid" and any(k > s for k, s in zip(kernel.shape, image.shape, strict=True)):
        if any(k < s for k, s in zip(kernel.shape, image.shape, strict=True)):
            raise ValueError(f"convolve2d: mode 'valid' needs one operand to fit in the other, got image "
                             f"{tuple(image.shape)} and kernel {tuple(kernel.shape)}")  # fmt: skip
        image, kernel = kernel, image
    k_h, k_w = kernel.shape
    pads = {"full": (k_w - 1, k_w - 1, k_h - 1, k_h - 1), "same": (k_w // 2, (k_w - 1) // 2, k_h // 2, (k_h - 1) // 2)}
    padded = F.pad(image, pads.get(mode, (0, 0, 0, 0)))
    return conv2d(padded[None, None], kernel.flip(0, 1)[None, None])[0, 0]
