"""The table of a model: per layer output size, weights, multiply-adds, bytes and receptive fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .receptive import Field, FieldTracker

HEADINGS = ("layer", "kind", "output size", "weight size", "params", "mult-adds", "bytes",
            "field prev", "field input", "stride")  # fmt: skip
_LEFT = HEADINGS[:4]
_WIDE_ONLY = ("kind", "bytes")


def _size(dims: Sequence[int] | None) -> str:
    return "" if dims is None else " x ".join(map(str, dims))


def _extent(dims: Sequence[int] | None) -> str:
    """A receptive field or stride: one number when all dimensions agree."""
    if dims is None:
        return "-"
    if not dims:
        return "all"
    return str(dims[0]) if len(set(dims)) == 1 else _size(dims)


@dataclass(frozen=True)
class Row:
    """One layer, for one sample (the batch dimension is left out)."""

    name: str
    kind: str
    output_size: tuple[int, ...]
    weight_size: tuple[int, ...] | None  # torch's shape; of a linear layer inputs x outputs, as it is written
    parameters: int
    macs: int  # multiply-adds of convolutions and linear layers
    bytes: int  # fewest possible: input and parameters read once, output written once
    field: Field | None  # in the input; None where there is no spatial map or the layer resizes it
    previous: tuple[int, ...] | None  # in the layer before; () means all of it

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADINGS."""
        seen = None if self.field is None else self.field.field
        jump = None if self.field is None else self.field.jump
        return (self.name, self.kind, _size(self.output_size), _size(self.weight_size), f"{self.parameters:,}",
                f"{self.macs:,}", f"{self.bytes:,}", _extent(self.previous), _extent(seen), _extent(jump))  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """All rows, with totals; ``str()`` is a plain table, ``rich()`` a rich one."""

    rows: list[Row]
    parameters: int
    macs: int = field(init=False)
    bytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "macs", sum(row.macs for row in self.rows))
        object.__setattr__(self, "bytes", sum(row.bytes for row in self.rows))

    def totals(self) -> str:
        """One line: parameters, multiply-adds and bytes of the whole model."""
        return f"{self.parameters:,} parameters, {self.macs:,} multiply-adds, {self.bytes:,} bytes per sample"

    def __str__(self) -> str:
        table = [HEADINGS, *(row.cells() for row in self.rows)]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(HEADINGS))]
        left = [heading in _LEFT for heading in HEADINGS]
        lines = []
        for cells in table:
            columns = zip(cells, widths, left, strict=True)
            lines.append("  ".join(c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in columns).rstrip())
        lines.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join([*lines, self.totals()])

    def rich(self, title: str | None = None, narrow: bool = False) -> Any:
        """A ``rich.table.Table`` (needs the package rich); ``narrow`` leaves out two columns to fit 80."""
        from rich import box
        from rich.table import Table

        shown = [i for i, heading in enumerate(HEADINGS) if not (narrow and heading in _WIDE_ONLY)]
        table = Table(title=title, caption=self.totals(), box=box.SIMPLE_HEAD, padding=(0, 0 if narrow else 1, 0, 0))
        for i in shown:
            heading = HEADINGS[i].replace(" ", "\n") if i >= len(_LEFT) else HEADINGS[i]
            table.add_column(heading, justify="left" if HEADINGS[i] in _LEFT else "right", no_wrap=True)
        for row in self.rows:
            cells = row.cells()
            table.add_row(*(cells[i] for i in shown))
        return table


def _weight_size(module: nn.Module) -> tuple[int, ...] | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return None
    return tuple(reversed(weight.shape)) if isinstance(module, nn.Linear) else tuple(weight.shape)


def _macs(module: nn.Module, input: Tensor, output: Tensor) -> int:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return input.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return 0


def _bytes(module: nn.Module, input: Tensor, output: Tensor) -> int:
    if isinstance(module, (nn.Flatten, nn.Unflatten, nn.Identity)):
        return 0
    return sum(t.numel() * t.element_size() for t in (input, output, *module.parameters(recurse=False)))


@contextmanager
def _hooked(model: nn.Module, tracker: FieldTracker, rows: list[Row]) -> Iterator[None]:
    counted: set[int] = set()

    def record(name: str, module: nn.Module, args: Any, out: Any) -> None:
        inputs = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not inputs or not outputs:
            return
        x, y = inputs[0], outputs[0]
        field, previous = tracker.layer(module, x, y)
        own = list(module.parameters(recurse=False)) if id(module) not in counted else []
        counted.add(id(module))
        rows.append(Row(name, type(module).__name__, tuple(y.shape[1:]), _weight_size(module),
                        sum(p.numel() for p in own), _macs(module, x, y), _bytes(module, x, y), field, previous))

    handles = []
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            label = name or type(module).__name__.lower()
            hook = lambda m, args, out, label=label: record(label, m, args, out)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def summary(model: nn.Module, input_size: Sequence[int] | Sequence[Sequence[int]], device: str = "meta") -> Summary:
    """The layers of ``model`` in the order they run, for one sample of ``input_size``.

    Args:
        model: any module. It is not changed: it runs once in eval mode on stand-ins for its parameters.
        input_size: size of one sample without the batch dimension, such as ``(3, 224, 224)``; or a list of sizes,
            one per argument of ``forward``.
        device: ``'meta'`` computes sizes only and allocates nothing. A model whose forward looks at values needs
            ``'cpu'``.

    Returns:
        A :class:`Summary`. Operations outside leaf modules (additions, ``F.relu``) have no row, but receptive
        fields are followed through them; where branches meet, the larger field counts.

    Example:
        >>> print(convnorm.analysis.summary(convnorm.models.LeNet5(norm=False), (1, 28, 28)))
    """
    flat = all(isinstance(s, int) for s in input_size)
    sizes: list[tuple[int, ...]] = [tuple(s) for s in ([input_size] if flat else input_size)]  # type: ignore[arg-type]
    if any(s < 1 for size in sizes for s in size):
        raise ValueError(f"summary: input_size {input_size} must have sizes of at least 1")
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtype = next((t.dtype for t in state.values() if t.dtype.is_floating_point), torch.float32)
    stand_in = {name: t.detach().to(device, copy=True) for name, t in state.items()}
    inputs = [torch.zeros((1, *size), dtype=dtype, device=device) for size in sizes]
    tracker = FieldTracker(inputs)
    rows = [Row("input", "", sizes[0], None, 0, 0, 0, tracker.get(inputs[0]), None)]
    with torch.no_grad(), _evaluating(model), _hooked(model, tracker, rows), tracker:
        torch.func.functional_call(model, stand_in, tuple(inputs))
    return Summary(rows, sum(math.prod(p.shape) for p in model.parameters()))
