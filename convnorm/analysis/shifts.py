"""What layers do when their input moves: convolution moves its output along, pooling forgives small moves.

Equivariance: layer(shift(x)) == shift(layer(x)). A convolution of stride 1 has it for every shift, one of stride S
for shifts by multiples of S; at the borders what enters the picture is different. Invariance: layer(shift(x)) ==
layer(x). Pooling has it approximately: small shifts change its output less than they change its input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Two outputs compared, position by position."""

    shift: tuple[int, ...]  # of the input, in pixels
    positions: int  # compared, over batch and channels
    share: float  # of them where the two are equal; 1 is perfect
    largest: float  # largest difference
    scale: float  # largest magnitude of the output
    change: float  # root mean square of the differences, as a share of the output's

    def __str__(self) -> str:
        at = ", ".join(map(str, self.shift))
        return (f"shift ({at}): {self.share:.1%} of {self.positions:,} outputs equal, largest difference "
                f"{self.largest:.1e} (outputs up to {self.scale:.1e}), changed by {self.change:.1%}")  # fmt: skip


def _inside(x: Tensor, shift: Sequence[int], margin: int = 0) -> Tensor:
    """The part of the last dimensions that a shift leaves filled, without a margin at every side."""
    for dim, s in enumerate(shift, x.dim() - len(shift)):
        start, stop = margin + max(s, 0), x.shape[dim] - margin + min(s, 0)
        x = x.narrow(dim, min(start, x.shape[dim]), max(stop - start, 0))
    return x


def shifted(x: Tensor, shift: Sequence[int]) -> Tensor:
    """``x`` moved by ``shift`` pixels along its last dimensions; what leaves is lost and zeros enter.

    Example:
        >>> shifted(torch.tensor([1, 2, 3]), (1,))
        tensor([0, 1, 2])
    """
    out = torch.zeros_like(x)
    if all(abs(s) < n for s, n in zip(shift, x.shape[-len(shift) :], strict=True)):
        _inside(out, shift).copy_(_inside(x, [-s for s in shift]))
    return out


def _compare(shift: tuple[int, ...], a: Tensor, b: Tensor, tolerance: float) -> Agreement:
    scale = float(b.abs().max()) if b.numel() else 0.0
    gaps = (a.double() - b.double()).abs()
    equal = gaps <= tolerance * scale
    share = float(equal.double().mean()) if gaps.numel() else 1.0
    norm = float(b.double().norm())
    change = float(gaps.norm()) / norm if norm else 0.0
    return Agreement(shift, gaps.numel(), share, float(gaps.max()) if gaps.numel() else 0.0, scale, change)


def _checked(what: str, input: Tensor, shift: int | Sequence[int]) -> tuple[int, ...]:
    n = input.dim() - 2
    shifts = (shift,) * n if isinstance(shift, int) else tuple(shift)
    if n < 1:
        raise ValueError(f"{what}: input has shape {tuple(input.shape)}, must be (batch, channels, spatial ...)")
    if len(shifts) != n:
        raise ValueError(f"{what}: shift {shifts} must be one integer, or {n}, one per spatial dimension")
    return shifts


def equivariance(layer: Callable[[Tensor], Tensor], input: Tensor, shift: int | Sequence[int], stride: int = 1,
                 margin: int = 0, tolerance: float = 0.0) -> Agreement:
    """How far ``layer(shift(input))`` is ``shift(layer(input))``, away from the borders.

    Args:
        layer: a convolution, or several; any function of one tensor.
        input: ``(batch, channels, spatial ...)``.
        shift: pixels, one number or one per spatial dimension; must be divisible by ``stride``.
        stride: of the layer, all its strides multiplied: the output moves by ``shift / stride``.
        margin: positions of the output to leave out at every side, besides those that the shift brings in:
            ``ceil((field - 1) / stride)`` is always enough.
        tolerance: differences that count as equal, as a share of the largest output.

    Raises:
        ValueError: a shift that is not divisible by the stride, of another number of dimensions, or a margin that
            leaves nothing.

    Example:
        >>> equivariance(torch.nn.Conv2d(1, 4, 3, padding=1), torch.randn(1, 1, 16, 16), 2, margin=2).share
        1.0
    """
    shifts = _checked("equivariance", input, shift)
    if any(s % stride for s in shifts):
        raise ValueError(f"equivariance: shift {shifts} must be divisible by stride {stride}")
    steps = tuple(s // stride for s in shifts)
    with torch.no_grad():
        moved, still = layer(shifted(input, shifts)), shifted(layer(input), steps)
    compared = _inside(moved, steps, margin)
    if not compared.numel():
        raise ValueError(f"equivariance: margin {margin} and shift {shifts} leave nothing of an output of "
                         f"{tuple(moved.shape[2:])}")  # fmt: skip
    return _compare(shifts, compared, _inside(still, steps, margin), tolerance)


def invariance(layer: Callable[[Tensor], Tensor], input: Tensor, shift: int | Sequence[int],
               tolerance: float = 0.0) -> Agreement:
    """How far the outputs of ``layer`` stay as they are when the input moves by ``shift`` pixels.

    Args:
        layer: a pooling layer; any function of one tensor. The identity is what to compare with.
        input: ``(batch, channels, spatial ...)``.
        shift: pixels, one number or one per spatial dimension.
        tolerance: differences that count as equal, as a share of the largest output.

    Raises:
        ValueError: a shift of another number of dimensions.

    Example:
        >>> invariance(torch.nn.MaxPool2d(2), torch.eye(8)[None, None], (0, 1)).share > 0.5
        True
    """
    shifts = _checked("invariance", input, shift)
    with torch.no_grad():
        return _compare(shifts, layer(shifted(input, shifts)), layer(input), tolerance)
