"""Two levels of sameness with torch, and the only place with a tolerance.

Level 1, :func:`assert_same`: every value equal (NaN equals NaN). For integer-valued data, for indices, and
for our own results among themselves.

Level 2, :func:`assert_accurate`: our error against a float64 reference is at most twice torch's own error at
the same dtype plus one rounding unit of the dtype at the result's scale (the reference's largest magnitude).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _differences(value: Tensor, reference: Tensor) -> Tensor:
    """|value - reference| in float64; 0 for a NaN in both, inf where only one is finite."""
    a, b = value.detach().double(), reference.detach().double()
    agree = (a == b) | (a.isnan() & b.isnan())
    return torch.where(agree, 0.0, (a - b).abs().nan_to_num(nan=torch.inf))


def max_error(value: Tensor, reference: Tensor) -> float:
    """The largest absolute difference to the reference, in float64.

    Args:
        value, reference: of one shape, any dtypes. NaN in both agrees; where only one is finite the error is infinite.

    Example:
        >>> max_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
        0.5
    """
    return float(_differences(value, reference).max()) if value.numel() else 0.0


def _worst(differences: Tensor) -> tuple[int, ...]:
    flat = int(differences.reshape(-1).argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), differences.shape))


def _assert_same_kind(ours: Tensor, theirs: Tensor, what: str) -> None:
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, must be {tuple(theirs.shape)}"


def assert_same(ours: Tensor, theirs: Tensor, what: str = "output") -> None:
    """Level 1: shape, dtype and every value equal; NaN equals NaN.

    Args:
        ours, theirs: of any shape and dtype.
        what: the name in the error.

    Raises:
        AssertionError: with the worst index, both values and how many differ.

    Example:
        >>> x = torch.randn(1, 3, 8, 8)
        >>> assert_same(convnorm.functional.max_pool2d(x, 2), torch.nn.functional.max_pool2d(x, 2))
    """
    _assert_same_kind(ours, theirs, what)
    assert ours.dtype == theirs.dtype, f"{what}: dtype {ours.dtype}, must be {theirs.dtype}"
    if not ours.numel():
        return
    differences = _differences(ours, theirs)
    count = int((differences != 0).sum())
    if count:
        at = _worst(differences)
        raise AssertionError(
            f"{what}: {count} of {ours.numel()} values differ; worst at {at}: "
            f"ours {ours[at].item()!r}, expected {theirs[at].item()!r}"
        )


def error_bound(own: float, reference: Tensor, dtype: torch.dtype, times: int = 2, units: int = 1) -> float:
    """``times`` the error that another computation at this dtype makes, plus rounding units of the dtype at the scale
    of the reference (its largest finite magnitude).

    Example:
        >>> error_bound(0.0, torch.tensor([1.0, -4.0]), torch.float32) == 4 * torch.finfo(torch.float32).eps
        True
    """
    finite = reference[reference.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return times * own + units * _unit(dtype) * scale


def assert_accurate(ours: Tensor, theirs: Tensor, reference: Tensor, what: str = "output") -> None:
    """Level 2: error of ours <= 2 * error of theirs + one rounding unit, errors taken against ``reference``.

    Tensors of integers (indices) must be equal. For float64, where torch itself is the reference, give its
    float32 result as ``theirs``: its error, scaled by the ratio of the rounding units, is then torch's, and
    counts once more, since the reference has it too.

    Args:
        ours, theirs: results of one dtype, or ``theirs`` in float32 where ours is float64.
        reference: the same in float64.
        what: the name in the error.

    Raises:
        AssertionError: with the worst index, the values there and both errors.

    Example:
        >>> x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
        >>> exact = torch.nn.functional.conv2d(x.double(), w.double())
        >>> assert_accurate(convnorm.functional.conv2d(x, w), torch.nn.functional.conv2d(x, w), exact)
    """
    if not ours.dtype.is_floating_point:
        assert_same(ours, theirs, what)
        return
    _assert_same_kind(ours, reference, what)
    if not ours.numel():
        return
    differences = _differences(ours, reference)
    error = float(differences.max())
    own = max_error(theirs, reference) * _unit(ours.dtype) / _unit(theirs.dtype)
    times = 2 if theirs.dtype == ours.dtype else 3
    bound = error_bound(own, reference, ours.dtype, times)
    if error > bound:
        at = _worst(differences)
        raise AssertionError(
            f"{what} ({ours.dtype}): error {error:.3e} > {bound:.3e} = {times} * torch's {own:.3e} + a unit "
            f"at the largest value; worst at {at}: ours {ours[at].item()!r}, torch {theirs[at].item()!r}, "
            f"reference {reference[at].item()!r}"
        )
