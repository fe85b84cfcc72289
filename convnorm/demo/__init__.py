"""LeNet-5 on real digits, twice from the same seed: with torch's layers and with convnorm's.

``make demo`` or ``python -m convnorm demo``. Shows that both learn the same and how fast each is.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .. import _C, __version__
from .. import nn as convnorm_nn
from .._console import Out
from .._figure import NO_PICTURE, can_draw
from ..analysis import summary
from ..data import digits_split
from . import lessons
from .training import GradientGap, LayerTime, Options, Trainer, gradient_gap, layer_times

__all__ = ["Options", "Result", "add_arguments", "main", "run"]

LESSONS: dict[str, Any] = {"lenet": None, "shifts": lessons.shifts, "algorithms": lessons.algorithms}
GOAL = 0.97  # accuracy with the default options
CLOSE = 0.005  # largest difference of the two accuracies


@dataclass(frozen=True)
class Result:
    """What the demo measured."""

    torch: Trainer
    convnorm: Trainer
    gap: GradientGap  # between the two networks' gradients of the first step
    errors: tuple[GradientGap, GradientGap]  # of torch and of convnorm, to the same gradients in float64
    times: list[list[LayerTime]]
    picture: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the demo, with the defaults of :class:`Options`."""
    parser.add_argument("lesson", nargs="?", choices=LESSONS, default="lenet",
                        help="lenet: train it; shifts: what moves with the input and what does not; algorithms: one "
                        "convolution by every kernel (%(default)s)")  # fmt: skip
    parser.add_argument("--epochs", type=int, default=Options.epochs, help="passes over the training set (%(default)s)")
    parser.add_argument("--seed", type=int, default=Options.seed, help="start weights and order (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=Options.batch_size, help="images per step (%(default)s)")
    parser.add_argument("--lr", type=float, default=Options.lr, help="first learning rate, then cosine (%(default)s)")
    parser.add_argument("--plain", action="store_true", help="LeNet-5 without batch norm")
    parser.add_argument("--channels-last", action="store_true", help="channels_last instead of NCHW")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    parser.add_argument("--limit", type=int, help="use only so many of the 5,000 images")
    parser.add_argument("--out", help="the picture (demo_output/<lesson>.png)")


def _train(options: Options, out: Out) -> tuple[Trainer, Trainer, dict[str, torch.Tensor]]:
    data = digits_split(limit=options.limit)
    theirs = Trainer("torch", torch.nn, data, options)
    ours = Trainer("convnorm", convnorm_nn, data, options)
    ours.net.load_state_dict(theirs.net.state_dict())
    wide = out.width >= 112
    title = f"LeNet-5 for {len(data.train_labels):,} training and {len(data.test_labels):,} test images, one sample:"
    out.heading(title)
    table = summary(theirs.net, (1, 28, 28))
    if out.console:
        out.console.print(table.rich(narrow=not wide))
    else:
        out.print(str(table))
    generator = torch.Generator().manual_seed(options.seed)
    exact: dict[str, torch.Tensor] = {}
    with out.progress(2 * options.epochs) as step:
        for epoch in range(options.epochs):
            order = torch.randperm(len(data.train_labels), generator=generator)
            exact = exact or theirs.exact_gradients(order[: options.batch_size])
            turns = (theirs, ours) if epoch % 2 == 0 else (ours, theirs)  # noise hits both alike
            for trainer in turns:
                trainer.epoch(order)
                step(f"epoch {epoch + 1}, {trainer.name}: loss {trainer.history[-1].loss:.4f}")
    return theirs, ours, exact


def _report(result: Result, out: Out) -> None:
    a, b = result.torch, result.convnorm
    out.heading("Training loss and test accuracy")
    rows = [
        (str(i), f"{x.loss:.4f}", f"{y.loss:.4f}", f"{x.accuracy:.1%}", f"{y.accuracy:.1%}",
         f"{x.seconds:.2f} s", f"{y.seconds:.2f} s")
        for i, (x, y) in enumerate(zip(a.history, b.history, strict=True), 1)
    ]  # fmt: skip
    headings = [f"{name}\n{what}" for what in ("loss", "accuracy", "time") for name in ("torch", "convnorm")]
    out.table(["epoch", *headings], rows)
    out.heading("Time per layer on one training batch, milliseconds (forward + backward)")
    layers = [
        (t.label, f"{t.forward:.2f} + {t.backward:.2f}", f"{c.forward:.2f} + {c.backward:.2f}",
         f"{(t.forward + t.backward) / (c.forward + c.backward):.2f}")
        for t, c in zip(*result.times, strict=True)
    ]  # fmt: skip
    out.table(["layer", "torch", "convnorm", "torch / convnorm"], layers)
    last, ratios = (a.history[-1].accuracy, b.history[-1].accuracy), []
    for x, y in zip(a.history, b.history, strict=True):
        ratios.append(x.seconds / y.seconds)
    out.heading("Result")
    out.print(f"final accuracy      torch {last[0]:.1%}, convnorm {last[1]:.1%}: "
              f"{100 * abs(last[0] - last[1]):.1f} points apart")
    out.print(f"images per second   torch {a.images_per_second:,.0f}, convnorm {b.images_per_second:,.0f}: "
              f"{median(ratios):.2f} times (by epoch {min(ratios):.2f} to {max(ratios):.2f})")
    out.print(f"first gradients     largest difference {result.gap.absolute:.1e} (in {result.gap.where}), "
              f"{result.gap.relative:.1e} of the largest gradient")
    out.print(f"  against float64   torch {result.errors[0].relative:.1e}, convnorm {result.errors[1].relative:.1e} "
              "of the largest gradient")
    if result.picture:
        out.print(f"picture             {result.picture}")


def run(options: Options, out: Out | None = None) -> Result:
    """Train both networks, print the report, draw the picture (where matplotlib is installed)."""
    out = out or Out()
    if options.threads:
        torch.set_num_threads(options.threads)
    out.print(f"convnorm {__version__} ({_C.active_isa()}), torch {torch.__version__}, "
              f"{torch.get_num_threads()} threads")
    theirs, ours, exact = _train(options, out)
    times = layer_times([theirs, ours], rounds=5 if options.limit else 25)
    picture = None
    if can_draw():
        from .picture import draw

        picture = draw(options.out, theirs, ours, times)
    first = (theirs.first_gradients, ours.first_gradients)
    errors = (gradient_gap(exact, first[0]), gradient_gap(exact, first[1]))
    result = Result(theirs, ours, gradient_gap(*first), errors, times, picture)
    _report(result, out)
    if picture is None:
        out.print(NO_PICTURE)
    return result


def main(arguments: argparse.Namespace) -> int:
    """Run with parsed arguments; 1 when a full run misses its goals."""
    arguments.out = arguments.out or f"demo_output/{arguments.lesson}.png"
    options, out = Options(**{f.name: getattr(arguments, f.name) for f in fields(Options)}), Out()
    if arguments.lesson != "lenet":
        if options.threads:
            torch.set_num_threads(options.threads)
        return LESSONS[arguments.lesson](out, options.out)
    result = run(options, out)
    a, b = result.torch.history[-1].accuracy, result.convnorm.history[-1].accuracy
    full = options.limit is None and options.epochs >= Options.epochs
    if full and (min(a, b) < GOAL or abs(a - b) > CLOSE + 1e-9):
        goal = f"goal missed: both {GOAL:.0%} or better and at most {100 * CLOSE:.1f} points apart"
        out.print(goal, style="bold red")
        return 1
    return 0
