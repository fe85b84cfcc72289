"""Folding batch norm into the convolution or linear layer before it, for inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ._console import plain_table
from ._folding.arithmetic import BatchNorm, Fold
from ._folding.rules import Refused, Traced, decide
from ._folding.trace import Untraceable, trace
from ._folding.verify import Check, Sample
from ._selection import Selection, Selectors, names_of


@dataclass(frozen=True)
class FoldEntry:
    """One batch norm of a report."""

    name: str
    kind: str
    into: str  # the layer it went into; "" where it stayed
    reason: str  # why it stayed

    def cells(self) -> tuple[str, ...]:
        """The row as text: name, class, what became of it."""
        return self.name or "(root)", self.kind, f"folded into {self.into}" if self.into else f"kept: {self.reason}"


@dataclass(frozen=True)
class FoldReport:
    """What became of every batch norm of a model, and why; ``str()`` is a readable page."""

    entries: list[FoldEntry]  # in the order of the model
    refusal: str = ""  # why nothing was folded, where that has one reason for the whole model
    error: float | None = None  # largest error of an output on the sample, against float64
    bound: float | None = None  # what that may be

    @property
    def folded(self) -> list[str]:
        """Names of the batch norms that were folded."""
        return [entry.name for entry in self.entries if entry.into]

    def __str__(self) -> str:
        head = f"{len(self.folded)} of {len(self.entries)} batch norms folded"
        if self.refusal:
            head += f": {self.refusal}"
        elif self.error is not None:
            head += f"; largest error on the sample {self.error:.3g}, bound {self.bound:.3g}"
        rows = [entry.cells() for entry in self.entries]
        return "\n".join([head, *([plain_table(("batch norm", "kind", "result"), rows, left=3)] if rows else [])])


def _arguments(sample: Any) -> Sample:
    if isinstance(sample, dict):
        return (), sample
    return (sample if isinstance(sample, tuple) else (sample,)), {}


def _carry_out(model: nn.Module, folds: list[Fold], check: Check) -> tuple[float, float]:
    """Folds, or raises and leaves the model as it was."""
    undo: list[Callable[[], None]] = []
    try:
        for fold in folds:
            undo.append(fold.carry_out(model))
        error, bound = check.compare(model)
        if not error <= bound:
            raise RuntimeError(f"fold: the outputs on the sample differ by {error:.3g}, more than the {bound:.3g} that "
                               f"rounding explains; the model is as it was")  # fmt: skip
    except BaseException:
        for back in undo:
            back()
        raise
    return error, bound


def _plan(traced: Traced) -> tuple[list[FoldEntry], list[Fold]]:
    """A row for every batch norm, and what is to be done; nothing is changed yet."""
    entries, folds = [], []
    for name, module in traced.model.named_modules():
        if isinstance(module, BatchNorm):
            into, reason = "", ""
            try:
                found = decide(traced, module)
                into = found.layer
                folds.append(found)
            except Refused as refused:
                reason = str(refused)
            entries.append(FoldEntry(name, type(module).__name__, into, reason))
    return entries, folds


def _untraced(model: nn.Module, reason: Untraceable) -> FoldReport:
    norms = [(name, type(m).__name__) for name, m in model.named_modules() if isinstance(m, BatchNorm)]
    sentence = f"torch.fx cannot trace this model ({reason})"
    return FoldReport([FoldEntry(name, kind, "", "not traced") for name, kind in norms], sentence)


def fold(model: nn.Module, sample: Any = None, *, exclude: Selectors = ()) -> FoldReport:
    """Fold every batch norm of ``model`` that can be into the convolution or linear layer before it, in place.

    In evaluation batch norm is linear: ``w' = w * gamma / sqrt(var + eps)`` and ``b' = (b - mean) * gamma /
    sqrt(var + eps) + beta``, computed in float64 and rounded once. The batch norm becomes ``nn.Identity`` (of a
    ``BatchNormAct`` its activation and residual stay), and leaves the state_dict. torch's layers and convnorm's alike:
    ``Conv``, ``ConvTranspose`` and ``Linear`` before ``BatchNorm``, ``SyncBatchNorm`` or ``BatchNormAct``.

    Args:
        model: a model in evaluation mode, any dtype and device. The forward is followed with torch.fx, on a copy.
        sample: what the model is called with: a tensor, a tuple of arguments or a dict of keywords. With it, the
            outputs before and after are compared, and decisions that the forward takes by shapes can be followed.
        exclude: batch norms, or layers before them, that stay: names, types or predicates, as for :func:`convert`.

    Returns:
        A report with a row for every batch norm, and the reason where it stays: a layer that is used more than once,
        an output that is also used elsewhere, shared or parametrised weights, no running statistics, hooks. Where
        torch.fx cannot follow the model nothing is folded, and the report says why.

    Raises:
        RuntimeError: the model is in training mode; or the outputs on the sample differ by more than rounding explains
            (twice the model's own error or what a unit in every weight does, and a unit), and the model is as it was.
        ValueError: a name in exclude matches nothing; the model returns nothing that could be compared.

    Source: the same identity as :func:`torch.nn.utils.fusion.fuse_conv_bn_eval`.

    Example:
        >>> print(convnorm.fold(model.eval(), torch.randn(1, 3, 224, 224)))
    """
    if model.training:
        raise RuntimeError("fold: the model is in training mode, where batch norm uses the statistics of the batch; "
                           "call model.eval() first")  # fmt: skip
    selection = Selection("fold", "exclude", exclude)
    for module, names in names_of(model).values():
        selection.has(module, names)
    selection.check_used()
    inputs = None if sample is None else _arguments(sample)
    check = None if inputs is None else Check(model, inputs)
    try:
        traced = Traced(*trace(model, inputs), selection)
    except Untraceable as reason:
        return _untraced(model, reason)
    entries, folds = _plan(traced)
    if check is None:
        for found in folds:
            found.carry_out(model)
        return FoldReport(entries)
    error, bound = _carry_out(model, folds, check)
    return FoldReport(entries, error=error, bound=bound)
