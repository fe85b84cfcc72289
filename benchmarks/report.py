"""Writes README's benchmark table from a results file, between the markers <!-- benchmark:begin --> and :end.

python benchmarks/report.py [benchmarks/results/<name>.json] [--readme README.md] [--print]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import sets
from text import ROOT, Row, details, figures, provenance, table, with_kind

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
LEGEND = (
    "torch's time / convnorm's time, geometric mean over the set; above 1 convnorm is faster. A row is a "
    "win or a loss only where the spread of the race agrees; the last column is a median."
)


def summary(rows: list[Row]) -> list[str]:
    head = [
        "op",
        "threads",
        "contiguous",
        "channels_last",
        "better layout of each",
        "win / even / loss",
        "of ceiling",
    ]
    body = []
    for (op, count), same in figures.grouped(rows, "op", "threads").items():
        by_layout = {layout: figures.mean_ratio(part) for (layout,), part in figures.grouped(same, "layout").items()}
        ceiling = statistics.median(r["ceiling_percent"] for r in same)
        cells = [f"x{by_layout[layout]:.2f}" if layout in by_layout else "" for layout in head[2:4]]
        better = f"x{figures.against_better_layout(same):.2f}"
        counts = " / ".join(map(str, figures.verdict_counts(same)))
        body.append([f"`{op}`", str(count), *cells, better, counts, f"{ceiling:.0f} %"])
    return table(head, body)


def loss_table(rows: list[Row]) -> list[str]:
    lost = figures.losses(rows)
    if not lost:
        return ["convnorm loses no row of this set."]
    body = [
        [
            f"`{r['op']}`",
            f"{r['problem']} ({r['source']})",
            r["layout"],
            str(r["threads"]),
            f"{r['us']:.0f}",
            f"{r['torch_us']:.0f}",
            f"x{r['ratio']:.2f}",
        ]
        for r in lost
    ]
    head = ["op", "problem", "layout", "threads", "us", "torch us", "ratio"]
    title = f"Rows where convnorm loses ({len(lost)} of {len(rows)}), the worst first"
    return details(title, table(head, body))


def report(result: dict[str, Any]) -> str:
    if sets.name(result) != "layers":
        return sets.report(result)
    rows = [with_kind(r) for r in result["rows"]]
    lines = [
        *provenance(result, rows),
        "",
        LEGEND,
        "",
        *summary(rows),
        "",
        *loss_table(rows),
    ]
    return "\n".join(lines)


def newest() -> dict[str, Any]:
    """The result of layers that was written last."""
    files = sorted((ROOT / "benchmarks/results").glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    results = (json.loads(path.read_text()) for path in files)
    found = next((result for result in results if sets.name(result) == "layers"), None)
    return found or sys.exit("report: benchmarks/results has no result of layers; run benchmarks/run.py first")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--print", action="store_true", help="print the table and leave the README as it is")
    options = parser.parse_args()
    text = report(json.loads(options.result.read_text()) if options.result else newest())
    if options.print:
        print(text)
        return
    readme = options.readme.read_text()
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        sys.exit(f"report: {options.readme} must have the markers {BEGIN} and {END} once each")
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    options.readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
