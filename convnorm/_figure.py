"""What convnorm's pictures have in common: colours, axes, and figures that need no display. Needs matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

TORCH, OURS, INK, GRID, EVEN = "#e07b39", "#1f5f99", "#222222", "#e3e3e3", "#8a8a8a"
TORCH_LIGHT, OURS_LIGHT = "#f3c7a5", "#9fc3e3"


NO_PICTURE = "no picture: matplotlib is not installed (pip install matplotlib)"


def can_draw() -> bool:
    """Whether matplotlib is there; where it is not, say NO_PICTURE."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> Any:
    """A white figure of so many inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Any, title: str, grid: str = "y") -> None:
    """The look of one chart."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)


def show_map(axes: Any, values: Any, bound: float, title: str = "") -> None:
    """A map of positive (red) and negative (blue) numbers in a frame without ticks."""
    axes.imshow(values.tolist(), aspect="auto", cmap="RdBu_r", vmin=-bound, vmax=bound)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#bbbbbb")
    if title:
        axes.set_title(title, loc="left", fontsize=9, color=INK)


def save(figure: Any, path: str | Path) -> Path:
    """Write the PNG, with its folder, and return where it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
