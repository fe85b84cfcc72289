"""Swapping the layers of a model: torch's for convnorm's, in place, and back.

A layer changes by ``module.__class__ = ...``, so parameters, buffers, hooks and what an optimizer holds stay as
they are. Only exact types are swapped: a subclass may override forward.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from . import nn as convnorm_nn
from ._selection import Selection, Selectors, names_of

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DEVICES = ("cpu", "meta")


def pairs() -> dict[type, type]:
    """{torch class: convnorm class} for every layer that convnorm.nn exports under torch's name."""
    table = {}
    for name in convnorm_nn.__all__:
        ours, theirs = getattr(convnorm_nn, name), getattr(nn, name, None)
        if inspect.isclass(theirs) and ours is not theirs and issubclass(ours, theirs):
            table[theirs] = ours
    return table


@dataclass(frozen=True)
class Entry:
    """One layer of a report."""

    name: str  # its first dotted name; "" is the root
    kind: str  # its class
    status: str  # "convnorm" (runs convnorm's kernels), "replaceable", "kept" (stays torch's)
    reason: str  # why it is kept; "" where it is not
    module: nn.Module  # the layer itself
    target: type | None = None  # what convert would make of it


@dataclass(frozen=True)
class ConversionReport:
    """Every layer of a model, and why it runs where it runs; ``str()`` is a readable page."""

    entries: list[Entry]  # in the order of the model

    def count(self, status: str) -> int:
        """How many layers have this status."""
        return sum(entry.status == status for entry in self.entries)

    def __str__(self) -> str:
        head = f"{self.count('convnorm')} layers run convnorm's kernels, {self.count('replaceable')} could, "
        lines = [head + f"{self.count('kept')} stay as they are"]
        wide = max([len(e.name) for e in self.entries] + [6])
        kind = max([len(e.kind) for e in self.entries] + [4])
        for e in self.entries:
            lines.append(f"  {e.name or '(root)':{wide}}  {e.kind:{kind}}  {e.status:11}  {e.reason}".rstrip())
        return "\n".join(lines)


def _obstacle(module: nn.Module, table: dict[type, type]) -> str:
    """Why a layer cannot be swapped; empty when it can."""
    kind = type(module)
    if kind is nn.SyncBatchNorm:
        return "convnorm.nn.SyncBatchNorm.convert_sync_batchnorm takes it: the group may change with it"
    if kind not in table:
        base = next((t for t in table if isinstance(module, t)), None)
        if base is None:
            return f"convnorm has no {kind.__name__}"
        if isinstance(module, LazyModuleMixin):
            return f"lazy: it becomes {base.__name__} at its first forward, convert after that"
        return f"a subclass of torch's {base.__name__}, which may compute something else"
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return "its forward was replaced on this instance"
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.device.type not in _DEVICES:
            return f"convnorm has no kernels for device {tensor.device.type}"
        if tensor.dtype not in _DTYPES and (tensor.is_floating_point() or tensor.is_complex()):
            return f"convnorm has no kernels for {tensor.dtype}"
    return ""


def _entry(module: nn.Module, names: list[str], table: dict[type, type], exclude: Selection,
           only: Selection | None) -> Entry:
    excluded = exclude.has(module, names)
    wanted = only is None or only.has(module, names)
    kind, target, status = type(module), None, "kept"
    reason = _obstacle(module, table)
    if kind.__module__.split(".")[:2] == ["convnorm", "nn"]:
        status, reason = "convnorm", ""
    elif not reason and (excluded or not wanted):
        reason = "excluded" if excluded else "not among only"
    elif not reason:
        status, target = "replaceable", table[kind]
    return Entry(names[0], kind.__name__, status, reason, module, target)


def conversion_report(model: nn.Module, exclude: Selectors = (), only: Selectors | None = None) -> ConversionReport:
    """What :func:`convert` would do with each layer, or has done; changes nothing.

    Lists every module without children, and every module of a type that convnorm has.

    Example:
        >>> print(convnorm.conversion_report(model))
    """
    table = pairs()
    without = Selection("convert", "exclude", exclude)
    within = None if only is None else Selection("convert", "only", only)
    known = (*table, *table.values())
    entries = []
    for module, names in names_of(model).values():
        entry = _entry(module, names, table, without, within)
        if isinstance(module, known) or not any(True for _ in module.children()):
            entries.append(entry)
    without.check_used()
    if within:
        within.check_used()
    return ConversionReport(entries)


def convert(model: nn.Module, exclude: Selectors = (), only: Selectors | None = None) -> nn.Module:
    """Let convnorm compute every layer of ``model`` that it can, in place.

    Args:
        model: any module; it may itself be a layer. Shared layers stay shared.
        exclude: layers to leave to torch: dotted names (``"layer1.*"`` globs; a name takes in all inside it), types,
            predicates ``(name, module) -> bool``, or several of these.
        only: touch nothing but these; same forms.

    Returns:
        The same object, for chaining. :func:`conversion_report` says what is where, and why.

    Raises:
        ValueError: a name in exclude or only matches nothing (a misspelling would go unseen).

    Example:
        >>> model = convnorm.convert(model, exclude="head")
    """
    for entry in conversion_report(model, exclude, only).entries:
        if entry.target is not None:
            entry.module.__class__ = entry.target
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undo :func:`convert`: every convnorm layer with a counterpart in torch becomes that again, in place.

    Layers that torch does not have, such as ``BatchNormAct2d``, stay.

    Example:
        >>> model = convnorm.revert(convnorm.convert(model))
    """
    back = {ours: theirs for theirs, ours in pairs().items()}
    for module in list(model.modules()):
        if type(module) in back:
            module.__class__ = back[type(module)]
    return model
