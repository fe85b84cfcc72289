"""The rows of a model's table, as text and for rich."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._console import plain_table
from .receptive import Field

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
    macs: int  # multiply-adds: half of the FLOPs that torch.utils.flop_counter counts
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
    macs: int  # of the rows, and of operations between them
    outside: int  # multiply-adds of operations that are in no row

    @property
    def bytes(self) -> int:
        """Fewest bytes that the rows move."""
        return sum(row.bytes for row in self.rows)

    def totals(self) -> str:
        """One line: parameters, multiply-adds and bytes of the whole model."""
        between = f" ({self.outside:,} of them outside of the rows)" if self.outside else ""
        return f"{self.parameters:,} parameters, {self.macs:,} multiply-adds{between}, {self.bytes:,} bytes per sample"

    def __str__(self) -> str:
        return f"{plain_table(HEADINGS, [row.cells() for row in self.rows], left=len(_LEFT))}\n{self.totals()}"

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
