"""The demo's picture: learning curves, learned filters, time per layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import _C, __version__
from .._figure import INK, OURS, OURS_LIGHT, TORCH, TORCH_LIGHT, new_figure, save, show_map, style
from .training import LayerTime, Trainer


def _curves(axes: Any, a: Trainer, b: Trainer, what: str) -> None:
    """Both networks in one chart: torch as a broad line, convnorm as a thin one on top of it."""
    epochs = range(1, len(a.history) + 1)
    scale = 100 if what == "accuracy" else 1
    for trainer, color, width, dot in ((a, TORCH_LIGHT, 6, 11), (b, OURS, 1.6, 4)):
        values = [scale * getattr(epoch, what) for epoch in trainer.history]
        axes.plot(epochs, values, color=color, linewidth=width, marker="o", markersize=dot, label=trainer.name)
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_xlim(0.5, len(a.history) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=9, loc="upper right" if what == "loss" else "lower right")
    if what == "loss":
        low, high = (f(epoch.loss for t in (a, b) for epoch in t.history) for f in (min, max))
        margin = max(1.1, (2 * low / high) ** 0.5)  # an axis of a factor 2 at least: one epoch's losses agree to 1e-6
        axes.set_yscale("log")
        axes.set_ylim(low / margin, high * margin)
        style(axes, "Training loss")
    else:
        for trainer in (a, b):
            trainer_final = f"{trainer.name}, at the end {100 * trainer.history[-1].accuracy:.1f} %"
            axes.get_legend().get_texts()[trainer is b].set_text(trainer_final)
        style(axes, "Test accuracy in %")


def _filters(figure: Any, cell: Any, trainer: Trainer) -> None:
    weights = trainer.net.get_parameter("conv1.weight").detach()
    bound = weights.abs().max().item()
    frame = figure.add_subplot(cell)
    frame.set_axis_off()
    frame.set_title("The 20 learned 5 x 5 filters of conv1", loc="left", fontsize=11, fontweight="bold", color=INK)
    grid = cell.subgridspec(4, 5, wspace=0.1, hspace=0.1)
    for i, weight in enumerate(weights[:, 0]):
        show_map(figure.add_subplot(grid[i // 5, i % 5]), weight, bound)


def _bars(axes: Any, times: list[list[LayerTime]]) -> None:
    """Two stacked bars per layer: forward below, backward above; over them how many times faster convnorm is."""
    width, gap = 0.36, 0.02
    top = max(t.forward + t.backward for net in times for t in net)
    styles = ((TORCH, TORCH_LIGHT, "torch"), (OURS, OURS_LIGHT, "convnorm"))
    for side, net, (dark, light, name) in zip((-1, 1), times, styles, strict=True):
        where = [i + side * (width + gap) / 2 for i in range(len(net))]
        forward, backward = [t.forward for t in net], [t.backward for t in net]
        axes.bar(where, forward, width, color=dark, label=f"{name} forward")
        axes.bar(where, backward, width, forward, color=light, label=f"{name} backward")
    for i, (theirs, ours) in enumerate(zip(*times, strict=True)):
        slow, fast = theirs.forward + theirs.backward, ours.forward + ours.backward
        axes.text(i, max(slow, fast) + 0.015 * top, f"{slow / fast:.1f}x", ha="center", fontsize=9.5, color=INK)
    axes.set_xticks(range(len(times[0])), [t.label for t in times[0]], fontsize=10)
    axes.set_ylabel("milliseconds per batch", fontsize=9)
    axes.set_ylim(0, 1.1 * top)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper right")
    style(axes, "Time per layer in training; the figure over a pair is torch's time / convnorm's")


def draw(path: str | Path, a: Trainer, b: Trainer, times: list[list[LayerTime]]) -> Path:
    """Write the PNG (needs matplotlib) and return where it is."""
    figure = new_figure(12.5, 9)
    grid = figure.add_gridspec(2, 3, height_ratios=(1, 1.05), left=0.06, right=0.98, top=0.88, bottom=0.06,
                               hspace=0.28, wspace=0.26)  # fmt: skip
    _curves(figure.add_subplot(grid[0, 0]), a, b, "loss")
    _curves(figure.add_subplot(grid[0, 1]), a, b, "accuracy")
    _filters(figure, grid[0, 2], b)
    _bars(figure.add_subplot(grid[1, :]), times)
    o = a.options
    name = "LeNet-5 without batch norm" if o.plain else "LeNet-5 with batch norm"
    figure.suptitle(f"{name}: torch {torch.__version__} and convnorm {__version__}", x=0.06, y=0.965, ha="left",
                    fontsize=15, fontweight="bold", color=INK)  # fmt: skip
    layout = "channels_last" if o.channels_last else "NCHW"
    count = len(a.data.train_labels)
    speed = f"{b.images_per_second:,.0f} images/s with convnorm, {a.images_per_second:,.0f} with torch"
    figure.text(0.06, 0.922, f"{count:,} MNIST digits, batch {o.batch_size}, seed {o.seed}, {layout}, "
                f"CPU threads: {torch.get_num_threads()}, {_C.active_isa()}; training: {speed}", fontsize=10, color=INK)
    return save(figure, path)
