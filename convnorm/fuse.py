"""Convolution, batch norm, sum and ReLU as one call each, in a graph of the model, for inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ._console import plain_table
from ._folding.chains import chain_from, drop_identities, move_rank_checks, rewrite
from ._folding.graph import follow, module_of, tensors_of
from ._folding.rules import Traced
from ._folding.trace import Untraceable, duplicate
from ._folding.verify import Check
from ._selection import Selectors
from .convert import convert
from .fold import FoldReport, arguments, chosen, fold_checked
from .nn.conv_act import _ConvAct


@dataclass(frozen=True)
class FuseEntry:
    """One call of a convolution."""

    name: str
    kind: str
    parts: tuple[str, ...]  # what the call computes after the convolution
    reason: str  # why no more than that

    def cells(self) -> tuple[str, ...]:
        """The row as text: name, class, what its call computes, and why it ends there."""
        return self.name or "(root)", self.kind, " + ".join(("convolution", *self.parts)), self.reason


@dataclass(frozen=True)
class FuseReport:
    """What every call of a convolution computes, and why no more; ``str()`` is a readable page."""

    entries: list[FuseEntry]  # in the order of the graph
    folded: FoldReport  # what was folded before
    sizes: bool  # whether the graph keeps the sample's sizes, as the forward decides by them
    error: float | None = None  # largest error of an output on the sample, against float64
    bound: float | None = None  # what that may be

    def __str__(self) -> str:
        sums, relus = (sum(part in e.parts for e in self.entries) for part in ("a sum", "ReLU"))
        head = f"{len(self.folded.folded)} of {len(self.folded.entries)} batch norms folded; of {len(self.entries)} "
        head += f"convolutions {sums} compute a sum and {relus} ReLU as well"
        if self.error is not None:
            head += f"; largest error on the sample {self.error:.3g}, bound {self.bound:.3g}"
        if self.sizes:
            head += "\nthe forward decides by sizes: the graph is for inputs of the sample's sizes"
        rows = [entry.cells() for entry in self.entries]
        stay = [entry.cells() for entry in self.folded.entries if not entry.into]
        lines = [head, plain_table(("module", "kind", "one call", "not more, as"), rows, left=4)] if rows else [head]
        return "\n".join([*lines, *([plain_table(("module", "kind", "result"), stay, left=3)] if stay else [])])


def _fused(traced: Traced) -> list[FuseEntry]:
    """Rewrite the graph; a row for every call of a convolution."""
    move_rank_checks(traced)
    entries: list[FuseEntry] = []
    for node in list(traced.graph.nodes):
        module = traced.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.modules.conv._ConvNd) or getattr(module, "transposed", False):
            continue
        name, kind = str(node.target), type(module).__name__
        if isinstance(module, _ConvAct):  # folding has done it
            parts = (*(["a sum"] if len(node.args) > 1 or "residual" in node.kwargs else []),
                     *(["ReLU"] if module.act else []))  # fmt: skip
            entries.append(FuseEntry(name, kind, parts, ""))
            continue
        chain = chain_from(traced, node)
        if chain.parts:
            rewrite(traced, chain)
        entries.append(FuseEntry(name, kind, tuple(chain.parts), chain.stopped))
    drop_identities(traced.graph, traced.model)
    return entries


def fuse(model: nn.Module, sample: Any = None, *, exclude: Selectors = ()) -> fx.GraphModule:
    """A graph of ``model`` in which convolution, batch norm, sum and ReLU are one call each, for inference.

    What :func:`convnorm.fold` does to modules this also does to code: ``F.relu(self.bn(self.conv(x)) + shortcut)``
    becomes one call, in place or not, of a :class:`convnorm.nn.ConvAct2d`, which writes its output once. A copy of the
    model is converted (:func:`convnorm.convert`), folded and followed by torch.fx; the model stays as it was.

    A step joins the call before it only where nothing else sees what is between them, and nothing in between changes
    in place what the call reads. Sums need a sample, on which their operands are of one shape and dtype.

    Args:
        model: a model in evaluation mode, of torch's layers or convnorm's.
        sample: what the model is called with: a tensor, a tuple of arguments or a dict of keywords. Values that are no
            tensors become constants of the graph. Without one, arguments that have defaults keep them.
        exclude: modules that stay as they are: names, types or predicates, as for :func:`convert`.

    Returns:
        A :class:`torch.fx.GraphModule` that takes the tensors of the sample under the names of the forward and returns
        what the model does. Its ``report`` has a row for every convolution: what its call computes, and why no more.

    Raises:
        RuntimeError: the model is in training mode; torch.fx cannot follow it, or it returns another kind of object;
            or the outputs on the sample differ by more than rounding explains, as for fold.
        ValueError: a name in exclude matches nothing; an argument of the sample is a collection of tensors; the model
            returns nothing that could be compared.

    Source: fx, https://pytorch.org/docs/stable/fx.html; the calls are :func:`convnorm.functional.conv2d_act`.

    Example:
        >>> fused = convnorm.fuse(convnorm.models.resnet18(10, width=8).eval(), torch.randn(1, 3, 64, 64))
        >>> print(fused.report)
    """
    if model.training:
        raise RuntimeError("fuse: the model is in training mode, where batch norm uses the statistics of the batch; "
                           "call model.eval() first")  # fmt: skip
    selection = chosen("fuse", model, exclude)
    inputs = None if sample is None else arguments(sample)
    taken = None if inputs is None else tensors_of(inputs)
    check = None if inputs is None else Check("fuse", model, inputs)
    own = convert(duplicate(model), exclude)
    folded = fold_checked(own, inputs, selection, None)
    reason = ""
    for sizes in (False, True) if inputs is not None else (False,):  # those of the sample only where it must be
        try:
            traced = follow(own, inputs, selection, sizes)
        except Untraceable as why:
            reason = f"torch.fx cannot trace this model ({why})"
            continue
        entries = _fused(traced)
        fused = module_of(traced, type(model).__name__)
        error, bound = (None, None) if check is None else check.compare(fused, taken)
        if error is None or bound is None or error <= bound:
            fused.report = FuseReport(entries, folded, sizes, error, bound)  # type: ignore[assignment]
            return fused
        reason = f"the outputs on the sample differ by {error:.3g}, more than the {bound:.3g} that rounding explains"
    raise RuntimeError(f"fuse: {reason}")
