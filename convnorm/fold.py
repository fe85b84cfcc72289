"""Folding batch norm and ReLU into the convolution or linear layer before them, for inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ._console import plain_table
from ._folding.activation import Activation
from ._folding.arithmetic import BatchNorm, Fold
from ._folding.relus import decide_relu
from ._folding.rules import Refused, Traced, decide
from ._folding.trace import Untraceable, trace
from ._folding.verify import Check, Sample
from ._selection import Selection, Selectors, names_of


@dataclass(frozen=True)
class FoldEntry:
    """One batch norm or ReLU of a report."""

    name: str
    kind: str
    into: str  # the layer it went into; "" where it stayed
    reason: str  # why it stayed
    note: str = ""  # of a batch norm with residual or activation: whether these went with it

    def cells(self) -> tuple[str, ...]:
        """The row as text: name, class, what became of it."""
        result = f"folded into {self.into}{self.note}" if self.into else f"kept: {self.reason}"
        return self.name or "(root)", self.kind, result


@dataclass(frozen=True)
class FoldReport:
    """What became of every batch norm and ReLU of a model, and why; ``str()`` is a readable page."""

    entries: list[FoldEntry]  # batch norms, in the order of the model
    refusal: str = ""  # why nothing was folded, where that has one reason for the whole model
    error: float | None = None  # largest error of an output on the sample, against float64
    bound: float | None = None  # what that may be
    activations: list[FoldEntry] = field(default_factory=list)  # modules that are ReLUs

    @property
    def folded(self) -> list[str]:
        """Names of the batch norms that were folded."""
        return [entry.name for entry in self.entries if entry.into]

    @property
    def fused(self) -> list[str]:
        """Names of the ReLUs that convolutions took in."""
        return [entry.name for entry in self.activations if entry.into]

    def __str__(self) -> str:
        head = f"{len(self.folded)} of {len(self.entries)} batch norms folded"
        if self.activations:
            head += f", {len(self.fused)} of {len(self.activations)} ReLUs"
        if self.refusal:
            head += f": {self.refusal}"
        elif self.error is not None:
            head += f"; largest error on the sample {self.error:.3g}, bound {self.bound:.3g}"
        rows = [entry.cells() for entry in (*self.entries, *self.activations)]
        return "\n".join([head, *([plain_table(("module", "kind", "result"), rows, left=3)] if rows else [])])


def arguments(sample: Any) -> Sample:
    """(positional, by keyword) of what a model is called with."""
    if isinstance(sample, dict):
        return (), sample
    return (sample if isinstance(sample, tuple) else (sample,)), {}


def _carry_out(model: nn.Module, steps: Sequence[Fold | Activation], check: Check | None) -> tuple[Any, Any]:
    """Folds, or raises and leaves the model as it was."""
    undo: list[Callable[[], None]] = []
    try:
        for step in steps:
            undo.append(step.carry_out(model))
        if check is None:
            return None, None
        error, bound = check.compare(model)
        if not error <= bound:
            raise RuntimeError(f"fold: the outputs on the sample differ by {error:.3g}, more than the {bound:.3g} that "
                               f"rounding explains; the model is as it was")  # fmt: skip
    except BaseException:
        for back in reversed(undo):
            back()
        raise
    return error, bound


def _note(found: Fold, norm: BatchNorm) -> str:
    what = " and ".join((["its residual"] if found.place == "norm" else []) + (["ReLU"] if found.act else []))
    if found.place:
        return f", with {what}"
    return f"; residual and activation stay: {found.apart}" if found.apart else ""


def _plan(traced: Traced) -> tuple[FoldReport, list[Fold | Activation]]:
    """A row for every batch norm and ReLU, and what is to be done; nothing is changed yet."""
    report, folds, relus = FoldReport([]), [], []
    for name, module in traced.model.named_modules():
        if isinstance(module, BatchNorm):
            try:
                found = decide(traced, module)
                folds.append(found)
                entry = FoldEntry(name, type(module).__name__, found.layer, "", _note(found, module))
            except Refused as refused:
                entry = FoldEntry(name, type(module).__name__, "", str(refused))
            report.entries.append(entry)
    for name, module in traced.model.named_modules():
        if type(module) is nn.ReLU:
            try:
                relu = decide_relu(traced, module, folds)
                relus.append(relu)
                report.activations.append(FoldEntry(name, "ReLU", relu.conv, ""))
            except Refused as refused:
                report.activations.append(FoldEntry(name, "ReLU", "", str(refused)))
    return report, [*folds, *relus]


def _untraced(model: nn.Module, reason: Untraceable) -> FoldReport:
    norms = [(name, type(m).__name__) for name, m in model.named_modules() if isinstance(m, BatchNorm)]
    sentence = f"torch.fx cannot trace this model ({reason})"
    return FoldReport([FoldEntry(name, kind, "", "not traced") for name, kind in norms], sentence)


def fold(model: nn.Module, sample: Any = None, *, exclude: Selectors = ()) -> FoldReport:
    """Fold every batch norm of ``model`` that can be into the convolution or linear layer before it, in place; and
    ReLU and residual into convolutions of convnorm.nn.

    In evaluation batch norm is linear: ``w' = w * gamma / sqrt(var + eps)`` and ``b' = (b - mean) * gamma /
    sqrt(var + eps) + beta``, computed in float64 and rounded once. The batch norm becomes ``nn.Identity`` (of a
    ``BatchNormAct`` its activation and residual stay), and leaves the state_dict. torch's layers and convnorm's alike:
    ``Conv``, ``ConvTranspose`` and ``Linear`` before ``BatchNorm``, ``SyncBatchNorm`` or ``BatchNormAct``.

    A convolution of convnorm.nn, with or without a batch norm, that only an ``nn.ReLU`` module follows becomes a
    :class:`convnorm.nn.ConvAct2d`, one pass in inference, and the ReLU an identity. So does one before a
    ``BatchNormAct``; if that has a residual, in its place, and with its name in the state_dict: there the residual is
    known. What a forward writes as code (``out + shortcut``, ``F.relu``) is left to :func:`convnorm.fuse`.

    Args:
        model: a model in evaluation mode, any dtype and device. The forward is followed with torch.fx, on a copy.
        sample: what the model is called with: a tensor, a tuple of arguments or a dict of keywords. With it, the
            outputs before and after are compared, and decisions that the forward takes by shapes can be followed.
        exclude: batch norms and ReLUs, or layers before them, that stay: names, types or predicates, as for
            :func:`convert`.

    Returns:
        A report with a row for every batch norm and ReLU, and the reason where it stays: a layer that is used more
        than once, an output that is also used elsewhere, shared or parametrised weights, no running statistics, hooks.
        Where torch.fx cannot follow the model nothing is folded, and the report says why.

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
    selection = chosen("fold", model, exclude)
    inputs = None if sample is None else arguments(sample)
    return fold_checked(model, inputs, selection, None if inputs is None else Check("fold", model, inputs))


def chosen(caller: str, model: nn.Module, exclude: Selectors) -> Selection:
    """The selection of an argument ``exclude``; a name that matches nothing is an error."""
    selection = Selection(caller, "exclude", exclude)
    for module, names in names_of(model).values():
        selection.has(module, names)
    selection.check_used()
    return selection


def fold_checked(model: nn.Module, inputs: Sample | None, selection: Selection, check: Check | None) -> FoldReport:
    """Fold in place what can be, and undo it if the check fails."""
    try:
        traced = Traced(*trace(model, inputs), selection)
    except Untraceable as reason:
        return _untraced(model, reason)
    report, steps = _plan(traced)
    error, bound = _carry_out(model, steps, check)
    return replace(report, error=error, bound=bound)
