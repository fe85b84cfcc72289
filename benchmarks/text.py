"""What all tables of results are made with, in Markdown."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


def by_path(path: str) -> Any:
    """A module without its package: ``import convnorm`` needs torch and the build, a table does not."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures = by_path("convnorm/bench/figures.py")


def table(head: list[str], body: list[list[str]]) -> list[str]:
    rule = ["---" if i == 0 else "---:" for i in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in [head, rule, *body]]


def details(title: str, lines: list[str]) -> list[str]:
    """Lines that are shown after a click on their title."""
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "", "</details>"]


def with_kind(row: Row) -> Row:
    """Depthwise convolutions are another kind of op than the rest: rows of their own in the summary."""
    return {**row, "op": f"{row['op']}, depthwise"} if "depthwise" in row["source"] else row


def provenance(result: dict[str, Any], rows: list[Row]) -> list[str]:
    """Where and with what these rows were measured."""
    m, dtypes = result["machine"], ", ".join(sorted({r["dtype"] for r in rows}))
    peers = "".join(f"; {name} {version}" for name, version in result.get("peers", {}).items())
    return [
        f"{m['cpu']}, {m['cores']} cores, {m['isa']}; torch {m['torch']}{peers}; convnorm {m['convnorm']} at "
        f"{m['commit']}, {m['date']}; {dtypes}{'; short races (--quick)' if result['quick'] else ''}.",
        f"Ceilings measured in the same run: {figures.limits(result)}.",
    ]
