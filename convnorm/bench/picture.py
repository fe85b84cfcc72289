"""A result as a picture: the ratio of every row, or of every group when the rows are many. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .._figure import EVEN, INK, OURS, TORCH, new_figure, save, style
from .figures import grouped, mean_ratio

COLOURS = {"win": OURS, "even": EVEN, "loss": TORCH}
MOST = 48  # rows that a page of labels holds


def _shortened(text: str, most: int = 72) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _points(rows: list[dict[str, Any]]) -> list[tuple[str, float, float, float, str]]:
    """(label, low, ratio, high, verdict), from the top: rows with their quartiles, or groups with their extremes."""
    if len(rows) <= MOST:
        return [(f"{r['op']}  {_shortened(r['problem'])}  {r['layout']}, {r['threads']}t", r["ratio_low"], r["ratio"],
                 r["ratio_high"], r["verdict"]) for r in rows]  # fmt: skip
    points = []
    for (op, layout, threads), same in grouped(rows, "op", "layout", "threads").items():
        ratios, mean = [r["ratio"] for r in same], mean_ratio(same)
        verdict = "win" if mean > 1.02 else "loss" if mean < 0.98 else "even"
        points.append((f"{op}  {len(same)} rows  {layout}, {threads}t", min(ratios), mean, max(ratios), verdict))
    return points


def draw(result: dict[str, Any], path: Path) -> Path:
    """Write the PNG and return where it is."""
    points = _points(result["rows"])
    few = len(result["rows"]) <= MOST
    figure = new_figure(12.5, 2.2 + 0.27 * len(points))
    height = figure.get_figheight()
    axes = figure.add_axes((0.47, 0.62 / height, 0.5, (height - 1.95) / height))
    for i, (_, low, ratio, high, verdict) in enumerate(points):
        axes.plot([low, high], [i, i], color=COLOURS[verdict], linewidth=5, alpha=0.35, solid_capstyle="round")
        axes.plot([ratio], [i], marker="o", color=COLOURS[verdict], markersize=6)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    low, high = min(p[1] for p in points), max(p[3] for p in points)
    axes.set_xlim(min(0.7, low / 1.15), max(1.5, high * 1.15))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(points)), [p[0] for p in points])
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.set_xlabel("torch's time / convnorm's: right of 1 convnorm is faster", fontsize=9)
    style(axes, "median, middle half of the rounds" if few else "geometric mean, smallest to largest", grid="x")
    m = result["machine"]
    figure.text(0.02, 1 - 0.42 / height, f"convnorm bench: {_shortened(result['target'], 90)}", fontsize=15,
                fontweight="bold", color=INK)  # fmt: skip
    short = "; short races: a look, not a result" if result["quick"] else ""
    figure.text(0.02, 1 - 0.75 / height, f"{m['cpu']}, {m['cores']} cores, {m['isa']}; torch {m['torch']}, convnorm "
                f"{m['convnorm']} at {m['commit']}, {m['date']}{short}", fontsize=10, color=INK)  # fmt: skip
    return save(figure, path)
