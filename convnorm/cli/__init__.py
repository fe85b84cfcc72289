"""The command line: ``python -m convnorm COMMAND`` or ``convnorm COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import _C, __version__, demo
from .._console import Out
from .check import run as run_check


class CommandError(Exception):
    """A command cannot do what was asked; its text is the whole message."""


def _info(arguments: argparse.Namespace) -> int:
    out, build = Out(), _C.build_info()
    out.print(f"convnorm     {__version__}, built with torch {build['built_with_torch']}, {build['compiler']}")
    out.print(f"torch        {torch.__version__}, Python {sys.version.split()[0]}")
    isas = ", ".join(build["isas_built"])
    out.print(f"instructions {_C.active_isa()} in use; this processor has {_C.supported_isa()}, built: {isas}")
    out.print(f"threads      {torch.get_num_threads()}")
    out.print(f"CUDA         convnorm {'built' if build['cuda'] else 'built without'}, "
              f"torch {torch.version.cuda or 'without'}")
    pins = os.environ.get("CONVNORM_FORCE")
    if pins:
        out.print(f"pinned       {pins}")
    out.heading("Kernels, in order of choice within an op")
    out.table(["op", "kernel", "needs", "about"],
              [(k["op"], k["kernel"], k["isa"], k["about"]) for k in _C.kernels()], left=4)  # fmt: skip
    return 0


def _check(arguments: argparse.Namespace) -> int:
    return run_check(Out())


def _demo(arguments: argparse.Namespace) -> int:
    return demo.main(arguments)


def _load(where: str) -> torch.nn.Module:
    """A module from 'package.module:name', where name is a module or makes one when called without arguments."""
    module, _, name = where.partition(":")
    if not name:
        raise CommandError(f"{where!r} must be MODULE:NAME, such as convnorm.models:LeNet5")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CommandError(str(error)) from error
    model = found if isinstance(found, torch.nn.Module) else found()
    if not isinstance(model, torch.nn.Module):
        raise CommandError(f"{where} gave a {type(model).__name__}, must be a torch.nn.Module")
    return model


def _summary(arguments: argparse.Namespace) -> int:
    from ..analysis import summary

    out = Out()
    table = summary(_load(arguments.model), arguments.input_size, device=arguments.device)
    if out.console:
        out.console.print(table.rich(narrow=out.width < 112))
    else:
        out.print(str(table))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"
    if not script.is_file():
        raise CommandError("benchmarks/run.py is not part of an installation; run this in a clone of convnorm")
    return subprocess.call([sys.executable, str(script), *arguments.rest], cwd=script.parents[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="convnorm", description="Convolution, pooling and normalization for PyTorch.")
    parser.add_argument("--version", action="version", version=f"convnorm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="versions, instruction set, threads, kernels: the start of a bug report")
    info.set_defaults(run=_info)
    check = commands.add_parser("check", help="compare the kernels with torch on this machine")
    check.set_defaults(run=_check)
    lenet = commands.add_parser("demo", help="train LeNet-5 with torch's layers and with convnorm's")
    demo.add_arguments(lenet)
    lenet.set_defaults(run=_demo)
    table = commands.add_parser("summary", help="the layers of a model: sizes, multiply-adds, receptive fields")
    table.add_argument("model", help="MODULE:NAME of a model, or of a class or function that makes one")
    table.add_argument("input_size", type=int, nargs="+", help="one sample, such as 3 224 224")
    table.add_argument("--device", default="meta", help="cpu for models whose forward looks at values (%(default)s)")
    table.set_defaults(run=_summary)
    bench = commands.add_parser("bench", help="benchmarks/run.py, in a clone", add_help=False)
    bench.set_defaults(run=_bench)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments, rest = _parser().parse_known_args(argv)
    if rest and arguments.command != "bench":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    try:
        return arguments.run(arguments)
    except (CommandError, FileNotFoundError) as error:  # what the user can mend: no traceback
        print(f"convnorm {arguments.command}: {error}", file=sys.stderr)
        return 2
