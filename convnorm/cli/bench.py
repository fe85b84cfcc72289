"""``convnorm bench``: convnorm against torch on the user's own layers, as JSON, PNG and one HTML page."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .._console import Out
from .._figure import NO_PICTURE, can_draw
from ..bench import peers, tables
from ..bench.contests import ROOMS
from ..bench.machine import cpu_name, thread_counts
from ..bench.problem import LAYOUTS, WORKLOADS, ProblemError
from ..bench.session import Entry, Settings, file_entries, model_entries, network_entries, own_entries, run, write
from .errors import CommandError, first_line, load_model

SETS = ("layers", "networks", "scaling")
DESCRIPTION = """Races layers by convnorm against the same layers by torch, in turns in one process.

  convnorm bench torchvision.models:resnet18 3 224 224     all layers of a model
  convnorm bench layers.txt                                a list, one layer a line
  convnorm bench --ops conv --filter 3x3                   convnorm's own workloads

A line of a list is `conv 4x64x56x56 64x64x3x3 stride=2 padding=1  # a comment`: op, shapes, settings."""


def _threads(text: str) -> list[int]:
    try:
        return thread_counts(text)
    except ValueError:
        rule = "numbers of at least 1, all or doubling, separated by commas"
        raise argparse.ArgumentTypeError(f"{text!r} must be {rule}") from None


def _positive(text: str) -> float:
    try:
        if (value := float(text)) > 0:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be a regular expression: {error}") from None
    return text


def _names(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    def convert(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} must be of {', '.join(allowed)}")
        return text.split(",")

    return convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    parser.add_argument("target", nargs="?", help="MODULE:NAME of a model, or a file with a list of layers")
    parser.add_argument("size", type=int, nargs="*", help="of a model: one sample, such as 3 224 224")
    parser.add_argument("--batch", type=int, default=4, help="of a model: samples in a batch (%(default)s)")
    parser.add_argument("--backward", action=argparse.BooleanOptionalAction, default=True,
                        help="race the gradients too (they are, unless --no-backward or --peers)")
    parser.add_argument("--ops", type=_names(list(ROOMS)), default=list(ROOMS),
                        help=f"of convnorm's own workloads: of {', '.join(ROOMS)}")
    parser.add_argument("--set", choices=SETS, default="layers",
                        help="without a target, what of convnorm's own is raced: layers; networks (a training step or "
                        "inference, and their memory); scaling (two layers, 1 to 32 images) (%(default)s)")
    parser.add_argument("--filter", type=_pattern, default="", metavar="REGEX",
                        help="only problems that contain this regular expression")
    parser.add_argument("--layout", type=_names(LAYOUTS), default=list(LAYOUTS), help="contiguous,channels_last")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--threads", type=_threads, help="counts, separated by commas; doubling: 1, 2, 4, ..., all "
                        "(1,all; of the set scaling doubling)")
    parser.add_argument("--seconds", type=_positive, default=1.0, help="length of one race (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="short races: a look, not a result")
    parser.add_argument("--peers", type=_names(peers.NAMES), default=[], metavar="NAMES",
                        help=f"race these too, in the forward: {','.join(peers.NAMES)} ({peers.EXTRA})")
    parser.add_argument("--out", type=Path, help="the JSON file; pictures and page lie beside it "
                        "(bench_output/<date>-<cpu>.json)")


def _settings(o: argparse.Namespace) -> Settings:
    seconds, rounds = (min(0.1, o.seconds), 5) if o.quick else (o.seconds, 11)
    dtype = str(o.dtype).removeprefix("torch.")
    kind = o.set
    if kind == "layers" and (o.peers or dtype != "float32"):
        kind = "peers" if o.peers else dtype
    threads = o.threads or thread_counts("doubling" if kind == "scaling" else "1,all")
    return Settings(threads, o.layout, o.dtype, seconds, rounds, o.filter,
                    o.backward and not o.peers, o.quick, o.peers, kind)  # fmt: skip


def _entries(o: argparse.Namespace, settings: Settings, out: Out) -> tuple[list[Entry], str]:
    """What to race, and what it is called."""
    if o.target is None and o.set == "networks":
        return network_entries(settings), "networks"
    if o.target is None and o.set == "scaling":
        return file_entries(WORKLOADS / "scaling.txt", settings), "scaling"
    if o.target is None:
        return own_entries(o.ops, settings), "convnorm's workloads"
    if Path(o.target).is_file():
        if o.size:
            raise CommandError(f"a list of layers has no input size, but {' '.join(map(str, o.size))} was given")
        return file_entries(Path(o.target), settings), o.target
    if ":" not in o.target:
        raise CommandError(f"{o.target!r} is no file here, and a model must be MODULE:NAME")
    model, text = load_model(o.target), " x ".join(map(str, (o.batch, *o.size)))
    if not o.size or min(o.size) < 1 or o.batch < 1:
        raise CommandError(f"a model needs the size of one sample and a batch, all of at least 1, such as "
                           f"{o.target} 3 224 224 --batch 4")  # fmt: skip
    parameter = next(model.parameters(), torch.empty(0))
    try:
        found, others = model_entries(model, [torch.randn(o.batch, *o.size).to(parameter.dtype)], settings)
    except Exception as error:
        raise CommandError(f"{o.target} cannot run on an input of {text}: {first_line(error)}") from error
    if others:
        out.print(f"not raced: {', '.join(others)}", style="yellow")
    return found, f"{o.target}, input {text}"


def run_bench(o: argparse.Namespace, folder: Path, pages: bool = True) -> int:
    """Race, print the tables, write the files; 1 when a problem failed."""
    out, settings = Out(), _settings(o)
    if absent := peers.missing(o.peers):
        raise CommandError(f"--peers {','.join(o.peers)} needs {', '.join(absent)}: {peers.EXTRA}")
    try:
        entries, target = _entries(o, settings, out)
    except ProblemError as error:
        raise CommandError(str(error)) from error
    if not any(re.search(settings.filter, entry.text) for entry in entries):
        raise CommandError(f"nothing to race: no layer of {target} that convnorm computes"
                           + (f" contains {settings.filter!r}" if settings.filter else ""))  # fmt: skip
    result = run(entries, settings, target, out)
    tables.show(result, out)
    slug = re.sub(r"\W+", "-", cpu_name()).strip("-").lower()
    suffix = "" if settings.set == "layers" else f"-{settings.set}"
    path = write(result, o.out or folder / f"{result['machine']['date']}-{slug}{suffix}.json")
    out.print(f"{len(result['rows'])} rows in {path}")
    if pages and result["rows"]:
        _pages(result, path, out)
    return 1 if result["failed"] else 0


def _pages(result: dict[str, Any], path: Path, out: Out) -> None:
    """The pictures and the page beside the JSON file."""
    from ..bench.page import page

    if can_draw():
        from ..bench import picture, roofline

        out.print(f"picture    {picture.draw(result, path.with_suffix('.png'))}")
        if drawn := roofline.draw(result, path.with_name(f"{path.stem}-roofline.png")):
            out.print(f"roofline   {drawn}")
    else:
        out.print(NO_PICTURE)
    html = path.with_suffix(".html")
    html.write_text(page(result))
    out.print(f"page       {html}")


def main(argv: Sequence[str] | None = None, prog: str = "convnorm bench", folder: Path = Path("bench_output"),
         pages: bool = True) -> int:
    """The command on its own, as benchmarks/run.py calls it."""
    parser = argparse.ArgumentParser(prog=prog)
    add_arguments(parser)
    try:
        return run_bench(parser.parse_args(argv), folder, pages)
    except CommandError as error:
        parser.exit(2, f"{prog}: {error}\n")
