"""Writes README's tables from the newest result of layers (between <!-- benchmark:begin --> and :end) and of networks.

python benchmarks/report.py [benchmarks/results/<name>.json] [--readme README.md] [--print]

Without a file it also draws docs/images/roofline.png. The tables of other sets are printed; the site has them.
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

MARKS = {"layers": "benchmark", "networks": "networks"}  # the sets that README shows, and what its markers are called
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


def newest(kind: str) -> dict[str, Any] | None:
    """The result of a set that was written last."""
    files = sorted((ROOT / "benchmarks/results").glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    results = (json.loads(path.read_text()) for path in files)
    return next((result for result in results if sets.name(result) == kind), None)


def written(readme: str, mark: str, text: str) -> str:
    """The README with this text between its markers."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    if readme.count(begin) != 1 or readme.count(end) != 1:
        sys.exit(f"report: the README must have the markers {begin} and {end} once each")
    before, rest = readme.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def picture(result: dict[str, Any]) -> None:
    """The roofline of docs/speed.md; unlike the tables it needs convnorm's build, and matplotlib."""
    sys.path.insert(0, str(ROOT))
    from convnorm.bench import roofline

    roofline.draw(result, ROOT / "docs/images/roofline.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--print", action="store_true", help="print the table and leave the README as it is")
    options = parser.parse_args()
    found = [json.loads(options.result.read_text())] if options.result else [newest(kind) for kind in MARKS]
    results = [result for result in found if result]
    if not results:
        sys.exit("report: benchmarks/results has no result of layers; run benchmarks/run.py first")
    if options.result is None and not options.print:
        picture(results[0])
    for result in results:
        mark = MARKS.get(sets.name(result))
        if options.print or mark is None:
            print(report(result))
        else:
            options.readme.write_text(written(options.readme.read_text(), mark, report(result)))


if __name__ == "__main__":
    main()
