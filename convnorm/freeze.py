"""Freezing: convolutions that keep their weights packed, for inference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ._console import plain_table
from ._packs import Packs
from ._selection import Selection, Selectors, names_of
from .nn.conv import FreezableConv


@dataclass(frozen=True)
class FreezeEntry:
    """One convolution of a report."""

    name: str
    kind: str
    reason: str  # why it is not frozen; "" where it is


@dataclass(frozen=True)
class FreezeReport:
    """Which convolutions keep their weights packed; ``str()`` is a readable page."""

    entries: list[FreezeEntry]
    packs: list[Packs]

    @property
    def frozen(self) -> list[str]:
        """Names of the convolutions that are frozen."""
        return [entry.name for entry in self.entries if not entry.reason]

    @property
    def bytes(self) -> int:
        """Memory that packed weights take by now: they are made by the first call of each shape."""
        return sum(packs.bytes() for packs in self.packs)

    def __str__(self) -> str:
        head = f"{len(self.frozen)} of {len(self.entries)} convolutions frozen; packed weights: {self.bytes:,} bytes"
        rows = [(e.name or "(root)", e.kind, e.reason or "frozen") for e in self.entries]
        return "\n".join([head, *([plain_table(("module", "kind", "result"), rows, left=3)] if rows else [])])


_ANY_CONV = nn.modules.conv._ConvNd


def _reason(module: nn.Module, excluded: bool) -> str:
    if excluded:
        return "excluded"
    if isinstance(module, FreezableConv):
        return ""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "a transposed convolution"
    return "not convnorm's; convnorm.convert makes it so"


def freeze(model: nn.Module, *, exclude: Selectors = ()) -> FreezeReport:
    """Let the convolutions of ``model`` keep their weights packed, in place: for inference with weights that stay.

    A convolution lays its weights out for the kernel at every call. For one image that takes a tenth to a fifth of
    a network's time. A frozen one does it at its first call of each input shape and keeps the result: a copy of its
    weights in float32 (in float64 of float64 ones); 36 values a filter and channel, four times 3x3, for layers that
    Winograd computes by tiles. The results are the same, bit for bit.

    Frozen are convnorm's own ``Conv1d``, ``2d``, ``3d`` and ``ConvAct1d``, ``2d``, ``3d`` on the CPU: call
    :func:`convnorm.convert` first, and :func:`convnorm.fold` or :func:`convnorm.fuse`, which change weights. Calls
    that record gradients, and those of ``torch.compile`` and ``torch.export``, pack as before. So do kernels that
    have nothing to keep, such as depthwise ones.

    Weights that torch sees change (an optimizer's step, ``copy_``, ``load_state_dict``, ``to``) are packed again. A
    write through ``.data`` or from outside torch is not seen: call freeze again after one.

    Args:
        model: a model in evaluation mode.
        exclude: convolutions that are left alone: names, types or predicates, as for :func:`convert`.

    Returns:
        A report with a row for every convolution; its ``bytes`` is the memory that packed weights take by then.

    Raises:
        RuntimeError: the model is in training mode.
        ValueError: a name in exclude matches nothing.

    Example:
        >>> fused = convnorm.fuse(convnorm.models.resnet18(10, width=8).eval(), torch.randn(1, 3, 64, 64))
        >>> print(convnorm.freeze(fused))
    """
    if model.training:
        raise RuntimeError("freeze: the model is in training mode, where weights change at every step; call "
                           "model.eval() first")  # fmt: skip
    selection = Selection("freeze", "exclude", exclude)
    entries: list[FreezeEntry] = []
    packs: list[Packs] = []
    for module, names in names_of(model).values():
        if not isinstance(module, _ANY_CONV):
            continue
        reason = _reason(module, selection.has(module, names))
        entries.append(FreezeEntry(names[0], type(module).__name__, reason))
        if not reason:
            packs.append(Packs())
            module._packs = packs[-1]  # type: ignore[assignment]
    selection.check_used()
    return FreezeReport(entries, packs)


def unfreeze(model: nn.Module) -> None:
    """Drop what :func:`freeze` gave the convolutions of ``model``, in place, and the memory with it.

    Example:
        >>> convnorm.unfreeze(convnorm.models.resnet18(10, width=8))
    """
    for module in model.modules():
        if isinstance(module, FreezableConv):
            module._packs = None
