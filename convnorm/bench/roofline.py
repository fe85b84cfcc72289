"""A result as a roofline: GFLOP/s of every row over its arithmetic intensity, under the ceilings. Needs matplotlib.

Source: Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from .._figure import EVEN, INK, OURS, TORCH, new_figure, save, style

KINDS = {"convolution": OURS, "depthwise convolution": "#4aa3a2", "pooling": TORCH, "norm": "#8e5ea2"}


def kind(row: dict[str, Any]) -> str:
    """What colour a row has."""
    if row["unit"] == "GFLOP/s":
        return "depthwise convolution" if "depthwise" in row["source"] else "convolution"
    return "pooling" if "pool" in row["op"] else "norm"


def points(rows: list[dict[str, Any]]) -> list[tuple[float, float, float, dict[str, Any]]]:
    """(FLOP per byte, GFLOP/s, torch's GFLOP/s, row) of the rows whose work is known."""
    return [(r["flops"] / r["bytes"], r["flops"] / r["us"] / 1e3, r["flops"] / r["torch_us"] / 1e3, r)
            for r in rows if r.get("flops") and r.get("bytes")]  # fmt: skip


def _panel(axes: Any, found: list[tuple[float, float, float, dict[str, Any]]], ceiling: dict[str, float]) -> None:
    for intensity, rate, torchs, row in found:
        colour = KINDS[kind(row)]
        face = "none" if row["op"].endswith("_backward") else colour
        marker = "o" if row["layout"] == "contiguous" else "s"
        axes.plot([intensity], [torchs], marker=".", color=EVEN, markersize=3, alpha=0.6, zorder=2)
        axes.plot([intensity], [rate], marker=marker, color=colour, markerfacecolor=face, markersize=4.5, alpha=0.75,
                  zorder=3)  # fmt: skip
    most, bandwidth = ceiling["GFLOP/s"], ceiling["GB/s"]
    corner = most / bandwidth
    low, high = min(p[0] for p in found) / 1.6, 2 * max(corner, *(p[0] for p in found))
    axes.plot([low, corner, high], [low * bandwidth, most, most], color=INK, linewidth=1.4, zorder=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    rates = [rate for p in found for rate in p[1:3]]
    axes.set_ylim(min(rates) / 1.6, max(*rates, most) * 2)
    for text, x, side in ((f"{most:.0f} GFLOP/s", corner, "left"), (f"{bandwidth:.0f} GB/s", corner / 4, "right")):
        axes.annotate(text, (x, x * bandwidth), (-6 if side == "right" else 2, 5), textcoords="offset points", ha=side,
                      fontsize=9, color=INK)  # fmt: skip
    axes.set_xlabel("FLOP per byte", fontsize=9)


def draw(result: dict[str, Any], path: Path) -> Path | None:
    """Write the PNG, a panel for each number of threads, and return where it is; None where no row has its work."""
    found = points(result["rows"])
    if not found:
        return None
    counts = sorted({row["threads"] for *_, row in found})
    figure = new_figure(6.4 * len(counts) + 0.4, 6.8)
    for i, threads in enumerate(counts):
        width = 1 / len(counts)
        axes = figure.add_axes(((i + 0.095) * width, 0.15, 0.885 * width, 0.64))
        _panel(axes, [p for p in found if p[3]["threads"] == threads], result["ceilings"][str(threads)])
        style(axes, f"{threads} thread{'s' if threads > 1 else ''}", grid="both")
        axes.set_ylabel("GFLOP/s" if i == 0 else "", fontsize=9)
    m = result["machine"]
    figure.text(0.02, 0.93, "Roofline of convnorm's kernels", fontsize=15, fontweight="bold", color=INK)
    lines = (f"{m['cpu']}, {m['isa']}; convnorm at {m['commit']}, {m['date']}.",
             "FLOP of the direct method over the fewest bytes.",
             "Winograd, which multiplies less, and data in caches may pass the lines.")  # fmt: skip
    for i, line in enumerate(lines):
        figure.text(0.02, 0.895 - 0.03 * i, line, fontsize=10, color=INK)
    seen = dict.fromkeys(kind(row) for *_, row in found)
    marks = [Line2D([], [], marker="o", linestyle="", color=KINDS[name], label=name) for name in seen]
    marks += [Line2D([], [], marker="o", linestyle="", color=INK, markerfacecolor="none", label="hollow: backward"),
              Line2D([], [], marker="s", linestyle="", color=INK, label="square: channels_last"),
              Line2D([], [], marker=".", linestyle="", color=EVEN, label="torch")]  # fmt: skip
    columns = len(marks) if len(counts) > 1 else 4
    figure.legend(handles=marks, loc="lower center", ncols=columns, fontsize=9, frameon=False)
    return save(figure, path)
