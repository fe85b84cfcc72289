"""One convolution by every kernel that can compute it: the algorithms of the registry, chosen by hand.

The registry lists conv_im2col (patches as a matrix), conv_igemm (the same product without the matrix), conv_winograd
and conv_depthwise. ``convnorm.backends.force(conv_forward="conv_im2col")`` pins one; here each has its turn.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .. import _C, backends
from .. import functional as CF
from ..bench.race import race, relative_error


@dataclass(frozen=True)
class Algorithm:
    """One kernel on one problem."""

    kernel: str
    about: str
    refusal: str  # why it cannot compute this problem here; empty when it can
    error: float = float("nan")  # the largest, against float64, as a share of the largest output
    microseconds: float = float("nan")  # median, in turns with the others


def _refusal(kernel: str, call: Callable[[], Tensor]) -> str:
    """Why a kernel cannot compute a call; empty when it can."""
    _C.trace_begin()
    try:
        call()
    except (RuntimeError, ValueError):
        return next(row["refusal"] for row in _C.trace_end() if row["kernel"] == kernel)
    _C.trace_end()
    return ""


def compare_algorithms(input: Tensor, weight: Tensor, bias: Tensor | None = None, seconds: float = 0.5,
                       **settings: Any) -> list[Algorithm]:
    """The forward of one convolution by each kernel of the registry, then by torch: error and time.

    Args:
        input: ``(n, c_in, spatial ...)``.
        weight: ``(c_out, c_in / groups, kernel ...)``.
        bias: ``(c_out,)`` or None.
        seconds: how long all of them race, in turns in one process.
        settings: ``stride``, ``padding``, ``dilation``, ``groups`` of ``conv2d``.

    Returns:
        One :class:`Algorithm` per kernel in the registry's order, torch's last. Of kernels that are compiled for
        several instruction sets the one in use is listed.

    Example:
        >>> x, w = torch.randn(4, 64, 28, 28), torch.randn(64, 64, 3, 3)
        >>> for a in compare_algorithms(x, w, padding=1):
        ...     print(a.kernel, a.refusal or f"{a.error:.1e}, {a.microseconds:.0f} us")
    """
    n = weight.dim() - 2
    ours, theirs = (functools.partial(getattr(m, f"conv{n}d"), **settings) for m in (CF, F))

    input, weight, bias = input.detach(), weight.detach(), None if bias is None else bias.detach()

    def by(kernel: str) -> Tensor:
        with backends.force(conv_forward=kernel):
            return ours(input, weight, bias)

    active = backends.isa()  # with products of bfloat16, all kernels but a few are still those of AVX-512
    vectors = (active, "avx512") if active in ("avx512bf16", "amx") else (active,)
    rows = [row for row in backends.kernels("conv_forward")
            if row["isa"] in vectors or not row["kernel"].endswith(f"_{row['isa']}")]  # fmt: skip
    players: dict[str, Callable[[], Any]] = {row["kernel"]: functools.partial(by, row["kernel"]) for row in rows}
    with backends.using_winograd(True):
        refusals = {name: _refusal(name, call) for name, call in players.items()}
        running = {name: call for name, call in players.items() if not refusals[name]}
        running["torch"] = lambda: theirs(input, weight, bias)
        times = dict(zip(running, race(list(running.values()), seconds, 3), strict=True))
        exact = theirs(*(None if t is None else t.double() for t in (input, weight, bias)))
        errors = {name: relative_error(call(), exact) for name, call in running.items()}
    about = {row["kernel"]: row["about"] for row in rows} | {"torch": "torch's own"}
    return [Algorithm(name, about[name], refusals[name]) if name not in running else
            Algorithm(name, about[name], "", errors[name], 1e6 * statistics.median(times[name]))
            for name in (*players, "torch")]  # fmt: skip
