"""Switches: the instruction set, and pinning an op to one of its kernels.

Example:
    >>> x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    >>> with convnorm.backends.force(conv_forward="conv_im2col"):
    ...     y = convnorm.functional.conv2d(x, w)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import _C


def isa() -> str:
    """The instruction set in use: 'generic', 'avx2', 'avx512', 'avx512bf16' or 'amx'."""
    return _C.active_isa()


def set_isa(name: str) -> None:
    """Use another instruction set, as the environment's CONVNORM_ISA does: 'auto' or one that :func:`isa` can give.

    For the whole process; :func:`using_isa` does it for a block.

    Raises:
        RuntimeError: the processor lacks it.
        ValueError: an unknown name.

    Example:
        >>> convnorm.backends.set_isa("auto")
    """
    _C.set_isa(name)


def kernels(op: str | None = None) -> list[dict[str, str]]:
    """Rows ``{op, kernel, about, isa, device}`` of every kernel, in order of choice within an op.

    Args:
        op: one op, such as ``"conv_forward"``; without it all.

    Example:
        >>> [row["kernel"] for row in convnorm.backends.kernels("batch_norm_train")][-1]
        'batch_norm_reference'
    """
    return [row for row in _C.kernels() if op is None or row["op"] == op]


def winograd() -> bool:
    """Whether convolutions may be computed by Winograd's method; see :func:`set_winograd`."""
    return _C.winograd()


def set_winograd(enabled: bool) -> None:
    """Allow Winograd's method, a third of the multiplications or fewer, or rule it out; for the whole process.

    It is on unless the environment has ``CONVNORM_WINOGRAD=0``, and serves float32 convolutions of one group with
    windows of 2x2 to 5x5 (of any depth), or of that many steps of the stride, and both gradients, where it saves time
    (1.1 to 3 times faster).

    Its rounding errors are larger than those of the direct sum, about twice on average, and an output shares in
    those of the 6x6 inputs around it. With ``eps = 2**-23`` and ``C`` channels summed over, the tests hold every
    output within ``(64 + C / 2) * eps * max|x| * (largest sum of |w| of a filter)`` of the exact result, on random
    data and on patterns chosen to make errors add up, and every gradient of a weight within
    ``64 * eps * max|x| * (largest sum of |grad_output| of a channel)``.

    Source: Lavin and Gray 2015, https://arxiv.org/abs/1509.09308; the points are those of Barabasz and others 2020.

    Example:
        >>> convnorm.backends.set_winograd(True)
    """
    _C.set_winograd(enabled)


@contextmanager
def using_winograd(enabled: bool) -> Iterator[None]:
    """Winograd's method on or off inside a ``with`` block; see :func:`set_winograd`.

    Example:
        >>> with convnorm.backends.using_winograd(False):
        ...     convnorm.backends.winograd()
        False
    """
    before = winograd()
    set_winograd(enabled)
    try:
        yield
    finally:
        set_winograd(before)


@contextmanager
def force(**pins: str) -> Iterator[None]:
    """Pin ops to kernels by name inside a ``with`` block; a problem the kernel refuses is then an error.

    The environment variable ``CONVNORM_FORCE="conv_forward=conv_im2col,..."`` does the same for a process.

    Args:
        pins: kernels by op, both as :func:`kernels` names them.

    Raises:
        ValueError: no such op, or no such kernel of it.
        RuntimeError: inside the block, a problem that the kernel refuses, with its reason.

    Example:
        >>> with convnorm.backends.force(conv_forward="conv_im2col"):
        ...     y = convnorm.functional.conv2d(torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3))
    """
    before = {op: _C.forced_kernel(op) for op in pins}
    try:
        for op, kernel in pins.items():
            _C.force_kernel(op, kernel)
        yield
    finally:
        for op, kernel in before.items():
            _C.force_kernel(op, kernel)


@contextmanager
def using_isa(name: str) -> Iterator[None]:
    """An instruction set inside a ``with`` block; names and errors as :func:`set_isa`.

    Example:
        >>> with convnorm.backends.using_isa("generic"):
        ...     convnorm.backends.isa()
        'generic'
    """
    before = _C.active_isa()
    _C.set_isa(name)
    try:
        yield
    finally:
        _C.set_isa(before)
