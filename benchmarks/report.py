"""Writes README's tables from the newest result of layers (between <!-- benchmark:begin --> and :end) and of networks.

python benchmarks/report.py [benchmarks/results/<name>.json] [--readme README.md] [--print]

Without a file it also draws docs/images/roofline.png. The tables of other sets are printed; the site has them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sets
import targets
from text import ROOT

MARKS = {"layers": "benchmark", "networks": "networks"}  # the sets that README shows, and what its markers are called
def newest(kind: str) -> dict[str, Any] | None:
    """The result of a set that was written last."""
    return next((result for result in every() if sets.name(result) == kind), None)


def every() -> Iterator[dict[str, Any]]:
    """All results, the last one first."""
    files = sorted((ROOT / "benchmarks/results").glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    return (json.loads(path.read_text()) for path in files)


def written(readme: str, mark: str, text: str) -> str:
    """The README with this text between its markers."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    if readme.count(begin) != 1 or readme.count(end) != 1:
        sys.exit(f"report: the README must have the markers {begin} and {end} once each")
    before, rest = readme.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def write_targets(layers: dict[str, Any], readme: Path) -> None:
    """With the newest results of the same processor that have peers and networks."""
    same = [r for r in every() if r["machine"]["cpu"] == layers["machine"]["cpu"]]
    others = [next((r for r in same if sets.name(r) == kind), None) for kind in ("peers", "networks")]
    text = targets.report(layers, [other for other in others if other])
    readme.write_text(written(readme.read_text(), "targets", text))


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
            print(sets.report(result))
        else:
            options.readme.write_text(written(options.readme.read_text(), mark, sets.report(result)))
        if not options.print and sets.name(result) == "layers":
            write_targets(result, options.readme)


if __name__ == "__main__":
    main()
