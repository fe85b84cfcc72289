"""From problems to a result: every contest raced at every number of threads, with progress."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._console import Out
from . import networks
from .contests import ROOMS, problems
from .figures import duration
from .layers import Layer, contests, layers_of
from .machine import ceilings, keep_freed_memory, machine
from .peers import versions
from .problem import LAYOUTS, Contest, Problem, layouts, read
from .race import measure


@dataclass(frozen=True)
class Settings:
    """How to race."""

    threads: list[int]
    layouts: list[str] = field(default_factory=lambda: list(LAYOUTS))
    dtype: str = "float32"
    seconds: float = 1.0
    rounds: int = 11
    filter: str = ""
    backward: bool = True
    quick: bool = False
    peers: list[str] = field(default_factory=list)  # beside torch's eager mode
    set: str = "layers"  # the kind of result, whose tables differ: layers, peers, networks, scaling


@dataclass(frozen=True)
class Entry:
    """One problem in one layout, and what makes its contests."""

    text: str
    layout: str
    make: Callable[[torch.dtype], Iterator[Contest]]


def _room_entry(op: str, problem: Problem, layout: str) -> Entry:
    return Entry(f"{op} {problem}", layout, lambda dtype: ROOMS[op](problem, layout, dtype))


def _layer_entry(layer: Layer, layout: str, training: bool) -> Entry:
    return Entry(f"{layer.op} {layer.problem}", layout, lambda dtype: contests(layer, layout, dtype, training))


def own_entries(ops: list[str], settings: Settings) -> list[Entry]:
    """convnorm's own workloads."""
    return [_room_entry(op, p, layout) for op in ops for p in problems(op)
            for layout in layouts(p.shapes[0], settings.layouts)]  # fmt: skip


def network_entries(settings: Settings) -> list[Entry]:
    """Whole networks."""

    def entry(network: networks.Network, layout: str) -> Entry:
        return Entry(network.text, layout, lambda dtype: networks.contests(network, layout, dtype))

    return [entry(network, layout) for network in networks.NETWORKS for layout in settings.layouts]


def file_entries(path: Path, settings: Settings) -> list[Entry]:
    """The layers of a list in the format of :mod:`convnorm.bench.problem`."""
    return [_room_entry(op, p, layout) for op, p in read(path, ROOMS)
            for layout in layouts(p.shapes[0], settings.layouts)]  # fmt: skip


def model_entries(model: nn.Module, inputs: list[torch.Tensor], settings: Settings) -> tuple[list[Entry], list[str]]:
    """The layers of a model that convnorm can compute; and those that are not raced, each with the reason."""
    layers, others = layers_of(model, inputs)
    return [_layer_entry(layer, layout, settings.backward) for layer in layers
            for layout in layouts(layer.problem.shapes[0], settings.layouts)], others  # fmt: skip


def _peer(peer: dict[str, Any]) -> str:
    return f"refused: {peer['refused']}" if "refused" in peer else f"{duration(peer['us'])} x{peer['ratio']:.2f}"


def _line(row: dict[str, Any]) -> str:
    peers = "".join(f"  {name} {_peer(peer)}" for name, peer in row.get("peers", {}).items())
    return (f"{row['op']:<24} {row['problem']:<48} {row['layout']:<13} {row['threads']}t {duration(row['us']):>8} "
            f"{row['rate']:>6.1f} {row['unit']:<7} {row['ceiling_percent']:>4.0f} %  "
            f"torch {duration(row['torch_us']):>8}  x{row['ratio']:.2f} ({row['ratio_low']:.2f}-"
            f"{row['ratio_high']:.2f}) {row['verdict']:<4} err {row['error']:.1e} / {row['torch_error']:.1e}  "
            f"{row['kernel']}{peers}")  # fmt: skip


def run(entries: list[Entry], settings: Settings, target: str, out: Out) -> dict[str, Any]:
    """Race every entry.

    Returns:
        ``machine``, ``set``, ``target``, ``quick``, ``seconds``, ``ceilings`` by number of threads, ``rows``
        (:func:`convnorm.bench.race.measure`), and ``failed``: problems that one of the players refused, with its words.
    """
    wanted = [e for e in entries if re.search(settings.filter, e.text)]
    result: dict[str, Any] = {"machine": machine(), "set": settings.set, "target": target, "quick": settings.quick,
                              "seconds": settings.seconds, "ceilings": {}, "rows": [], "failed": []}  # fmt: skip
    facts = result["machine"]
    if settings.peers:
        result["peers"] = versions(settings.peers)
    out.print(f"{facts['cpu']}, {facts['isa']}, torch {facts['torch']}, commit {facts['commit']}")
    if facts["load"] > 0.7:
        out.print(f"other work is running (load average {facts['load']}): a call of several threads then waits for a "
                  "whole turn of the scheduler", style="yellow")  # fmt: skip
    keep_freed_memory()
    before = torch.get_num_threads()
    try:
        with out.progress(len(wanted) * len(settings.threads)) as step:
            for threads in settings.threads:
                torch.set_num_threads(threads)
                ceiling = result["ceilings"][str(threads)] = ceilings(threads)
                limits = ", ".join(f"{value:.0f} {unit}" for unit, value in ceiling.items())
                out.print(f"ceiling at {threads} thread(s): {limits}")
                for entry in wanted:
                    _race_entry(entry, settings, threads, ceiling, result, out)
                    step(f"{entry.text}, {entry.layout}")
    finally:
        torch.set_num_threads(before)
    return result


def _race_entry(entry: Entry, settings: Settings, threads: int, ceiling: dict[str, float], result: dict[str, Any],
                out: Out) -> None:
    try:
        for contest in entry.make(getattr(torch, settings.dtype)):
            if contest.op.endswith("_backward") and not settings.backward:
                continue
            row = measure(contest, ceiling, threads, settings.seconds, settings.rounds, settings.peers)
            result["rows"].append(row)
            if not out.live:  # there is no bar in a log
                out.print(_line(row))
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        words = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        failed = {"problem": entry.text, "layout": entry.layout, "threads": threads, "error": words}
        result["failed"].append(failed)
        out.print(f"{entry.text}, {entry.layout}: {words}", style="bold red")


def write(result: dict[str, Any], path: Path) -> Path:
    """The result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
