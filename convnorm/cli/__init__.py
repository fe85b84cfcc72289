"""The command line: ``python -m convnorm COMMAND`` or ``convnorm COMMAND``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import _C, __version__, demo
from .._console import Out
from .bench import add_arguments, run_bench
from .check import run as run_check
from .errors import CommandError, first_line, load_model


def _info(arguments: argparse.Namespace) -> int:
    out, build = Out(), _C.build_info()
    out.print(f"convnorm     {__version__}, built with torch {build['built_with_torch']}, {build['compiler']}")
    out.print(f"torch        {torch.__version__}, Python {sys.version.split()[0]}")
    isas = ", ".join(build["isas_built"])
    out.print(f"instructions {_C.active_isa()} in use; this processor has {_C.supported_isa()}, built: {isas}")
    out.print(f"threads      {torch.get_num_threads()}")
    cuda = f"built for {build['cuda']} (compiled, not run on a GPU yet)" if build["cuda"] else "built without"
    out.print(f"CUDA         convnorm {cuda}, torch {torch.version.cuda or 'without'}")
    pins = os.environ.get("CONVNORM_FORCE")
    if pins:
        out.print(f"pinned       {pins}")
    out.heading("Kernels, in order of choice within an op")
    rows = [(k["op"], k["kernel"], "cuda" if k["device"] == "cuda" else k["isa"], k["about"]) for k in _C.kernels()]
    out.table(["op", "kernel", "needs", "about"], rows, left=4)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    return run_check(Out())


def _demo(arguments: argparse.Namespace) -> int:
    return demo.main(arguments)


def _summary(arguments: argparse.Namespace) -> int:
    from ..analysis import summary

    out, model, size = Out(), load_model(arguments.model), arguments.input_size
    try:
        table = summary(model, size, device=arguments.device)
    except Exception as error:
        hint = "" if arguments.device != "meta" else "; a model whose forward looks at values needs --device cpu"
        raise CommandError(f"{arguments.model} cannot run on an input of {' x '.join(map(str, size))}: "
                           f"{first_line(error)}{hint}") from error  # fmt: skip
    if out.console:
        out.console.print(table.rich(narrow=out.width < 112))
    else:
        out.print(str(table))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    return run_bench(arguments, Path("bench_output"))


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
    bench = commands.add_parser("bench", help="race convnorm against torch on your layers or your model")
    add_arguments(bench)
    bench.set_defaults(run=_bench)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (CommandError, FileNotFoundError) as error:  # what the user can mend: no traceback
        print(f"convnorm {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"convnorm {arguments.command}: interrupted", file=sys.stderr)
        return 130  # what shells expect of SIGINT
