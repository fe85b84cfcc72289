"""``convnorm demo shifts`` and ``convnorm demo algorithms``: two lessons of the course, printed and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import functional as CF
from .. import nn
from .._console import Out
from .._figure import NO_PICTURE, can_draw
from ..analysis import compare_algorithms, equivariance, invariance, shifted
from ..data import digits

SHIFTS = (1, 2, 3, 4)
# An oriented edge: bright above, dark below, smoothed along the edge.
EDGE = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) * torch.tensor([1.0, 2.0, 0.0, -2.0, -1.0])[:, None] / 48


def _edges(x: Tensor) -> Tensor:
    return CF.conv2d(x, EDGE[None, None], padding=2)


def _edges_stride_2(x: Tensor) -> Tensor:
    return CF.conv2d(x, EDGE[None, None], stride=2, padding=2)


def _pooled(x: Tensor, k: int) -> Tensor:
    return nn.MaxPool2d(k)(x)


CONVOLUTIONS = (("edge filter, stride 1", _edges, 1), ("edge filter, stride 2", _edges_stride_2, 2))
POOLS: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("no layer", lambda x: x),
    ("max pool 2", lambda x: _pooled(x, 2)),
    ("max pool 4", lambda x: _pooled(x, 4)),
    ("max pool 7", lambda x: _pooled(x, 7)),
    ("mean pool 7", lambda x: CF.avg_pool2d(x, 7)),
)


def _pictured(path: str, draw: Any, out: Out) -> None:
    out.print(f"picture: {draw(Path(path))}" if can_draw() else NO_PICTURE)


def shifts(out: Out, path: str, count: int = 200) -> int:
    """Equivariance of convolution and approximate invariance of pooling, on digits."""
    images = digits()[0][:: 5000 // count]
    out.heading("Equivariance: the input moves, and the output of a convolution moves along")
    out.print("layer(shift(x)) against shift(layer(x)), away from the borders; -: the stride does not divide the shift")
    rows = []
    for name, layer, stride in CONVOLUTIONS:
        for shift in SHIFTS:
            if shift % stride:  # the output has no position for half a step
                rows.append((name, str(shift), "-", "-"))
                continue
            found = equivariance(layer, images, shift, stride, margin=2)
            rows.append((name, str(shift), f"{found.share:.1%}", f"{found.largest:.1e}"))
    out.table(["layer", "shift", "equal", "largest difference"], rows)
    out.heading("Invariance: the input moves, and pooling changes less than its input did")
    out.print("layer(shift(x)) against layer(x): root mean square of the change as a share of the output's")
    changes = {name: [invariance(layer, images, shift).change for shift in SHIFTS] for name, layer in POOLS}
    out.table(["layer", *(f"{s} px" for s in SHIFTS)],
              [(name, *(f"{c:.0%}" for c in row)) for name, row in changes.items()])  # fmt: skip
    _pictured(path, lambda where: _draw_shifts(where, images, changes), out)
    return 0


def _draw_shifts(path: Path, images: Tensor, changes: dict[str, list[float]]) -> Path:
    from .._figure import GRID, INK, OURS, OURS_LIGHT, TORCH, new_figure, save, show_map, style

    x, move = images[len(images) // 2 :][:1], (2, 2)
    y = shifted(x, move)
    moved = shifted(_edges(x), move)
    columns: tuple[tuple[str, Tensor, Tensor], ...] = (
        ("digit", x, y),
        ("edge filter", _edges(x), _edges(y)),
        ("max pool 4", _pooled(x, 4), _pooled(y, 4)),
    )
    figure = new_figure(12.5, 6.5)
    grid = figure.add_gridspec(2, 5, left=0.02, right=0.98, top=0.82, bottom=0.08, wspace=0.12, hspace=0.18,
                               width_ratios=(1, 1, 1, 0.28, 2))  # fmt: skip
    for column, (name, still, after) in enumerate(columns):
        bound = float(still.abs().max())
        show_map(figure.add_subplot(grid[0, column]), still[0, 0], bound, name)
        show_map(figure.add_subplot(grid[1, column]), after[0, 0], bound, f"{name}, moved input")
    axes = figure.add_subplot(grid[:, 4])
    colours = (INK, OURS_LIGHT, "#5f97c9", OURS, TORCH)
    for (name, row), colour in zip(changes.items(), colours, strict=True):
        axes.plot(SHIFTS, [100 * c for c in row], marker="o", color=colour, label=name)
    axes.set_xticks(SHIFTS)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("shift in pixels, both axes", fontsize=9)
    axes.legend(frameon=False, fontsize=9)
    style(axes, "Change of the output in %")
    axes.grid(axis="both", color=GRID)
    gap = float((_edges(y) - moved)[..., 5:-5, 5:-5].abs().max())
    figure.text(0.02, 0.935, "A convolution moves with its input, pooling forgives small moves", fontsize=15,
                fontweight="bold", color=INK)  # fmt: skip
    text = "Below, the input is moved by 2 pixels down and right. The edge map moves along: the largest difference"
    figure.text(0.02, 0.885, f"{text} from the upper one, moved, is {gap:g} inside.", fontsize=10, color=INK)
    return save(figure, path)


def algorithms(out: Out, path: str) -> int:
    """One 3x3 convolution by every kernel of the registry: error and time."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=generator) for shape in ((1, 32, 28, 28), (32, 32, 3, 3)))
    out.heading("32 filters of 32 x 3 x 3 on 1 x 32 x 28 x 28, by every kernel of the registry")
    found = compare_algorithms(x, w, padding=1, seconds=1.0)
    rows = [(a.kernel, f"cannot: {a.refusal}", "", "") if a.refusal else
            (a.kernel, a.about, f"{a.error:.1e}", f"{a.microseconds:,.0f} us") for a in found]  # fmt: skip
    out.table(["kernel", "how", "error", "time"], rows, left=2, fold=1)
    out.print("error: the largest, against float64, as a share of the largest output. Medians of races in turns.")
    out.print('with convnorm.backends.force(conv_forward="conv_im2col"): ... pins one of them')
    _pictured(path, lambda where: _draw_algorithms(where, [a for a in found if not a.refusal]), out)
    return 0


def _draw_algorithms(path: Path, found: list[Any]) -> Path:
    from .._figure import INK, OURS, TORCH, new_figure, save, style

    figure = new_figure(11, 0.9 + 0.55 * len(found))
    colours = [TORCH if a.kernel == "torch" else OURS for a in found]
    for i, (title, values) in enumerate((("Microseconds", [a.microseconds for a in found]),
                                         ("Largest error, share of the output", [a.error for a in found]))):
        axes = figure.add_axes((0.23 + 0.4 * i, 0.14, 0.33, 0.7))
        axes.scatter(values, range(len(found)), color=colours, s=60)
        for k, value in enumerate(values):
            text = f"{value:,.0f}" if i == 0 else f"{value:.1e}"
            axes.annotate(text, (value, k), (8, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * 5)
        axes.set_ylim(-0.6, len(found) - 0.4)
        axes.set_yticks(range(len(found)), [a.kernel for a in found] if i == 0 else [""] * len(found), color=INK)
        axes.invert_yaxis()
        style(axes, title, grid="x")
    return save(figure, path)
