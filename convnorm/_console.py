"""Terminal output: rich where it is installed, aligned plain text where it is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

try:
    from rich.console import Console
except ImportError:  # rich is optional
    Console = None  # type: ignore[assignment,misc]


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns padded with spaces; the first ``left`` columns to the left, the others to the right."""
    lines = [tuple(h.replace("\n", " ") for h in headings), *map(tuple, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    text = []
    for line in lines:
        cells = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        text.append("  ".join(cells).rstrip())
    text.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(text)


class Out:
    """Prints text, tables and progress; ``plain=True`` never uses rich."""

    def __init__(self, plain: bool = False) -> None:
        self.console: Any = None if plain or Console is None else Console(highlight=False)

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self.console.width if self.console else shutil.get_terminal_size().columns

    @property
    def live(self) -> bool:
        """Whether a person sees the progress bar: rich, on a terminal."""
        return bool(self.console and self.console.is_terminal)

    def print(self, text: str = "", style: str | None = None) -> None:
        """One paragraph."""
        if self.console:
            self.console.print(text, style=style, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def heading(self, text: str) -> None:
        """A title, with an empty line before it."""
        self.print()
        self.print(text, style="bold")

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1,
              styles: Sequence[str | None] | None = None, fold: int | None = None) -> None:
        """A table of text cells; ``styles`` colour its rows, and only the column ``fold`` wraps when there is one."""
        if not self.console:
            print(plain_table(headings, rows, left))
            return
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, heading in enumerate(headings):
            justify: Any = "left" if i < left else "right"
            table.add_column(heading, justify=justify, overflow="fold", no_wrap=fold not in (None, i))
        for row, style in zip(rows, styles or [None] * len(rows), strict=True):
            table.add_row(*map(escape, row), style=style)
        self.console.print(table)

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[str], None]]:
        """A progress bar; the function given advances it by one step and sets its label."""
        if not self.console:
            yield lambda label: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda label: bar.update(task, advance=1, description=label)
