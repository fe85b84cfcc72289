"""A result as one HTML page that needs nothing else: no scripts, styles or pictures from elsewhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from .figures import duration, groups_of, limits, losses, mean_ratio, verdict_counts

_SPAN = 8.0  # the axis of a row's ratio goes from 1/8 to 8


def _place(ratio: float, width: float) -> float:
    """Where a ratio lies on an axis of this width, logarithmically; beyond its ends at its ends."""
    share = math.log(min(max(ratio, 1 / _SPAN), _SPAN)) / math.log(_SPAN)
    return round((share + 1) / 2 * width, 1)


def _skyline(rows: list[dict[str, Any]], width: float = 1000.0, height: float = 150.0) -> list[dict[str, Any]]:
    """One bar per row, sorted by ratio: up from the middle where convnorm is faster, down where torch is."""
    ordered = sorted(rows, key=lambda r: r["ratio"])
    step = width / max(len(ordered), 12)
    bars = []
    for i, row in enumerate(ordered):
        top, middle = height - _place(row["ratio"], height), height / 2
        bars.append({"row": row, "x": round(i * step, 2), "width": round(max(step * 0.8, 0.7), 2),
                     "y": min(top, middle), "height": max(abs(top - middle), 1.0)})  # fmt: skip
    return bars


def page(result: dict[str, Any]) -> str:
    """The page; it has dark and light colours, sorts by a click on a heading, and lists where convnorm loses."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    rows = result["rows"]
    parts = {
        "Forward": [r for r in rows if not r["op"].endswith("_backward")],
        "Backward": [r for r in rows if r["op"].endswith("_backward")],
    }
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    return template.render(
        result=result,
        machine=result["machine"],
        rows=rows,
        peers=list(result.get("peers", {})),
        means={name: mean_ratio(part) for name, part in parts.items() if part},
        verdicts=verdict_counts(rows),
        groups=groups_of(rows),
        losses=losses(rows),
        limits=limits(result),
        bars=_skyline(rows),
        place=_place,
    )
