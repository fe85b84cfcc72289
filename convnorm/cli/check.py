"""``convnorm check``: the kernels against torch in float64, on the machine it runs on. Needs torch only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _C, backends
from .. import functional as CF
from .._console import Out
from ..testing import assert_accurate, max_error

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One call, made through torch's functional and convnorm's."""

    text: str
    function: str
    shapes: tuple[tuple[int, ...], ...]  # of the tensors that lead the arguments, all with gradients
    options: dict[str, Any]
    channels_last: bool = False


CASES = (
    Case("3x3, padding", "conv2d", ((2, 16, 14, 14), (32, 16, 3, 3), (32,)), {"padding": 1}),
    Case("3x3, channels_last", "conv2d", ((2, 16, 14, 14), (32, 16, 3, 3), (32,)), {"padding": 1}, True),
    Case("1x1", "conv2d", ((2, 24, 9, 9), (40, 24, 1, 1), (40,)), {}),
    Case("5x5, one channel", "conv2d", ((2, 1, 28, 28), (20, 1, 5, 5), (20,)), {"padding": 2}),
    Case("stride 2, dilation 2", "conv2d", ((2, 6, 17, 15), (10, 6, 3, 3), (10,)), {"stride": 2, "dilation": 2}),
    Case("groups 4", "conv2d", ((2, 8, 10, 10), (12, 2, 3, 3), (12,)), {"groups": 4}),
    Case("depthwise", "conv2d", ((2, 19, 11, 11), (19, 1, 3, 3), (19,)), {"groups": 19, "padding": 1}),
    Case("1d", "conv1d", ((2, 5, 33), (7, 5, 4), (7,)), {"stride": 2, "padding": 1}),
    Case("3d", "conv3d", ((1, 3, 6, 7, 8), (5, 3, 3, 3, 3), (5,)), {"padding": 1}),
    Case("2x2", "max_pool2d", ((2, 20, 28, 28),), {"kernel_size": 2}),
    Case("3x3 stride 2", "max_pool2d", ((2, 17, 15, 15),), {"kernel_size": 3, "stride": 2, "padding": 1}, True),
    Case("3d, ceil_mode", "max_pool3d", ((1, 3, 7, 7, 7),), {"kernel_size": 2, "ceil_mode": True}),
    Case("training", "batch_norm", ((4, 19, 9, 9),), {"training": True}),
    Case("training, channels_last", "batch_norm", ((4, 19, 9, 9),), {"training": True}, True),
    Case("inference", "batch_norm", ((4, 19, 9, 9),), {"training": False}),
)


def _tensors(case: Case, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in case.shapes]
    if case.channels_last:
        made = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made]
    return made


def _answers(function: Callable[..., Tensor], case: Case, dtype: torch.dtype, cast: torch.dtype) -> list[Tensor]:
    """The output and the gradients of all tensors; inputs are rounded to dtype (of float32), then computed in cast."""
    tensors = [t.to(cast).requires_grad_() for t in _tensors(case, dtype)]
    extra = []
    if case.function == "batch_norm":
        channels = case.shapes[0][1]
        extra = [torch.linspace(-1, 1, channels, dtype=cast), torch.linspace(0.5, 2, channels, dtype=cast)]
    out = function(*tensors, *extra, **case.options)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(cast)
    return [out.detach(), *torch.autograd.grad(out, tensors, weights)]


def _compare(case: Case, dtype: torch.dtype) -> tuple[float, float, str]:
    """(largest error of convnorm, of torch, what is wrong: empty when nothing is).

    Without Winograd's method, whose errors have a bound of their own (:func:`convnorm.backends.set_winograd`).
    """
    with backends.using_winograd(False):
        ours = _answers(getattr(CF, case.function), case, dtype, dtype)
    # In float64 torch is the reference itself: there its float32 error, scaled down, is the measure.
    measure = torch.float32 if dtype == torch.float64 else dtype
    theirs = _answers(getattr(F, case.function), case, dtype, measure)
    exact = _answers(getattr(F, case.function), case, dtype, torch.float64)
    wrong = ""
    try:
        for i, (mine, other, reference) in enumerate(zip(ours, theirs, exact, strict=True)):
            name = f"gradient {i}" if i else "output"
            assert_accurate(mine, other, reference, name)
    except AssertionError as error:
        wrong = str(error)
    largest = [max(max_error(x, r) for x, r in zip(answer, exact, strict=True)) for answer in (ours, theirs)]
    scale = torch.finfo(dtype).eps / torch.finfo(measure).eps
    return largest[0], largest[1] * scale, wrong


def run(out: Out) -> int:
    """Check every case and dtype, print a table; 1 when something is wrong, else 0."""
    out.print(f"convnorm against torch {torch.__version__} in float64, {_C.active_isa()}, "
              f"{torch.get_num_threads()} threads: outputs and gradients")
    rows, failures = [], []
    with out.progress(len(CASES) * len(DTYPES)) as step:
        for case in CASES:
            cells = []
            for dtype in DTYPES:
                label = f"{case.function} {case.text}, {dtype}"
                step(label)
                try:
                    mine, other, wrong = _compare(case, dtype)
                    cells.append(f"{mine:.0e} / {other:.0e}" + (" WRONG" if wrong else ""))
                except (RuntimeError, NotImplementedError) as error:
                    cells.append("failed")
                    wrong = str(error)
                if wrong:
                    failures.append(f"{label}: {wrong}")
            rows.append((f"{case.function} {case.text}", *cells))
    out.table(("largest error, convnorm / torch", *(str(d).removeprefix("torch.") for d in DTYPES)), rows)
    for failure in failures:
        out.print(failure)
    total = len(CASES) * len(DTYPES)
    out.print(f"{total - len(failures)} of {total} agree with torch" + ("" if failures else ": all is well"))
    return 1 if failures else 0
