"""Figures over the rows of a result: what README's table and the HTML page both say."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

Row = dict[str, Any]
VERDICTS = ("win", "even", "loss")


def grouped(rows: list[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of these keys, in the order they come."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[k] for k in keys)].append(row)
    return groups


def mean_ratio(rows: list[Row]) -> float:
    """Geometric mean of torch's time / ours."""
    return statistics.geometric_mean(r["ratio"] for r in rows)


def against_better_layout(rows: list[Row]) -> float:
    """Geometric mean of torch's time / ours where each may take the layout it is faster in."""
    ratios = [
        min(r["torch_us_min"] for r in same) / min(r["us_min"] for r in same)
        for same in grouped(rows, "problem", "dtype").values()
    ]
    return statistics.geometric_mean(ratios)


def rivals(row: Row) -> dict[str, Row]:
    """All that raced against convnorm in this row, by name: torch's eager mode, and peers that did not refuse."""
    torch = {key: row[key] for key in ("ratio", "verdict")} | {"us": row["torch_us"], "us_min": row["torch_us_min"]}
    raced = {name: peer for name, peer in row.get("peers", {}).items() if "refused" not in peer}
    return {"torch": {**torch, "error": row["torch_error"]}, **raced}


def against_best(rows: list[Row]) -> float:
    """Geometric mean of the best rival's time / ours where each may take the layout it is fastest in."""
    ratios = [
        min(rival["us_min"] for row in same for rival in rivals(row).values()) / min(row["us_min"] for row in same)
        for same in grouped(rows, "problem", "dtype").values()
    ]
    return statistics.geometric_mean(ratios)


def beaten_by_peers(rows: list[Row]) -> list[tuple[Row, str, Row]]:
    """(row, name, peer) where a rival is faster than convnorm in the same layout, the worst first."""
    found = [(row, name, rival) for row in rows for name, rival in rivals(row).items() if rival["verdict"] == "loss"]
    return sorted(found, key=lambda one: one[2]["ratio"])


def peer_groups(rows: list[Row], names: list[str]) -> list[tuple[str, int, dict[str, Row], float]]:
    """Per op and number of threads: (op, threads, {rival: mean ratio, verdicts, rows}, ratio to the best of all)."""
    groups = []
    for (op, threads), same in grouped(rows, "op", "threads").items():
        told = {}
        for name in ["torch", *names]:
            raced = [rivals(row)[name] for row in same if name in rivals(row)]
            if raced:
                told[name] = {"ratio": mean_ratio(raced), "verdicts": verdict_counts(raced), "rows": len(raced)}
        groups.append((op, threads, told, against_best(same)))
    return groups


def verdict_counts(rows: list[Row]) -> list[int]:
    """How many rows are won, even, lost."""
    return [sum(r["verdict"] == v for r in rows) for v in VERDICTS]


def losses(rows: list[Row]) -> list[Row]:
    """The rows that convnorm loses, the worst first."""
    return sorted((r for r in rows if r["verdict"] == "loss"), key=lambda r: r["ratio"])


def groups_of(rows: list[Row]) -> list[Row]:
    """Per op, layout and number of threads: rows, mean ratio, verdicts, and both players' time for all layers."""
    return [
        {
            "op": op,
            "layout": layout,
            "threads": threads,
            "rows": len(same),
            "ratio": mean_ratio(same),
            "verdicts": " / ".join(map(str, verdict_counts(same))),
            "us": sum(r["us"] * r.get("count", 1) for r in same),
            "torch_us": sum(r["torch_us"] * r.get("count", 1) for r in same),
        }
        for (op, layout, threads), same in grouped(rows, "op", "layout", "threads").items()
    ]


def size(bytes: float | None) -> str:
    """Bytes with three digits and a unit: ``1.25 MB``; nothing where they are not known."""
    if bytes is None:
        return ""
    for unit, scale in (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if bytes < 999.5 * scale or unit == "GB":
            value = bytes / scale
            digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def duration(us: float) -> str:
    """Microseconds with three digits and a unit: ``12.3 us``, ``4.56 ms``."""
    for unit, scale in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        if us < 999.5 * scale or unit == "s":
            value = us / scale
            digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def limits(result: dict[str, Any]) -> str:
    """One line: the ceilings of every number of threads."""
    return "; ".join(
        f"{count} thread(s): {c['GFLOP/s']:.0f} GFLOP/s of multiply-adds, {c['GB/s']:.0f} GB/s of copying"
        for count, c in result["ceilings"].items()
    )
