"""Times convnorm against torch, into benchmarks/results/<name>.json; report.py makes README's table of it.

    python benchmarks/run.py --quick --ops conv --filter 3x3
    python benchmarks/run.py --threads 1,all --layout channels_last

Players take turns, round by round, in one process. The ratio is the median over the rounds of torch's time /
ours; it is called a win or a loss only when the middle half of the rounds agrees.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from baselines import ROOMS, Contest, layouts, problems  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: E402

import convnorm  # noqa: E402
from convnorm import _C  # noqa: E402
from convnorm.testing import max_error  # noqa: E402

LEAST_SAMPLE = 2e-3  # seconds; shorter calls are repeated within one sample


def clock(function: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def race(players: list[Callable[[], Any]], seconds: float, least_rounds: int) -> list[list[float]]:
    """Seconds per call of every round, for each player; who starts alternates."""
    for function in players:
        function()
    repeats = [max(1, round(LEAST_SAMPLE / max(clock(f, 1), 1e-7))) for f in players]
    times: list[list[float]] = [[] for _ in players]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < least_rounds:
        order = range(len(players)) if len(times[0]) % 2 == 0 else reversed(range(len(players)))
        for i in order:
            times[i].append(clock(players[i], repeats[i]))
    return times


def relative_error(results: Any, reference: Any) -> float:
    """The largest error of any result, as a share of the largest magnitude of its reference."""
    pairs = zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (results, reference)), strict=True)
    return max(max_error(a, b) / max(float(b.detach().abs().max()), 1e-300) for a, b in pairs)


def chosen_kernels(function: Callable[[], Any]) -> str:
    _C.trace_begin()
    function()
    names = dict.fromkeys(v["kernel"] for v in _C.trace_end() if v["chosen"])
    return " + ".join(names)


def verdict(low: float, high: float) -> str:
    return "win" if low > 1 else "loss" if high < 1 else "even"


def measure(
    contest: Contest, ceiling: dict[str, float], threads: int, options: argparse.Namespace
) -> dict[str, Any]:
    reference = contest.reference()
    errors = [relative_error(player(), reference) for player in (contest.ours, contest.theirs)]
    del reference
    ours, theirs = race([contest.ours, contest.theirs], options.seconds, options.rounds)
    low, ratio, high = statistics.quantiles([b / a for a, b in zip(ours, theirs, strict=True)], n=4)
    seconds = statistics.median(ours)
    unit, work = ("GFLOP/s", contest.flops) if contest.flops else ("GB/s", contest.bytes)
    rate = work / seconds / 1e9
    return {
        "op": contest.op,
        "dtype": str(contest.dtype).removeprefix("torch."),
        "layout": contest.layout,
        "problem": str(contest.problem),
        "source": contest.problem.source,
        "threads": threads,
        "kernel": chosen_kernels(contest.ours),
        "us": seconds * 1e6,
        "us_min": min(ours) * 1e6,
        "torch_us": statistics.median(theirs) * 1e6,
        "torch_us_min": min(theirs) * 1e6,
        "rate": rate,
        "unit": unit,
        "ceiling_percent": 100 * rate / ceiling[unit],
        "torch_rate": work / statistics.median(theirs) / 1e9,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "verdict": verdict(low, high),
        "error": errors[0],
        "torch_error": errors[1],
        "rounds": len(ours),
    }


def line(row: dict[str, Any]) -> str:
    colour = {"win": "green", "loss": "red", "even": "yellow"}[row["verdict"]]
    return (
        f"{row['op']:<24} {row['problem']:<48} {row['layout']:<13} {row['threads']}t "
        f"{row['us']:>9.1f} us {row['rate']:>6.1f} {row['unit']:<7} {row['ceiling_percent']:>4.0f} %  "
        f"torch {row['torch_us']:>9.1f} us  [{colour}]x{row['ratio']:.2f}[/] "
        f"({row['ratio_low']:.2f}-{row['ratio_high']:.2f})  "
        f"err {row['error']:.1e} / {row['torch_error']:.1e}  {row['kernel']}"
    )


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": convnorm.backends.isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "convnorm": convnorm.__version__,
        "compiler": _C.build_info()["compiler"],
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", default=",".join(ROOMS), help=f"workload files, of {', '.join(ROOMS)}")
    parser.add_argument(
        "--filter", default="", help="only rows whose 'op problem' contains this regular expression"
    )
    parser.add_argument("--layout", default="contiguous,channels_last", help="layouts, separated by commas")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--threads", default="1,all", help="thread counts, separated by commas")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one race")
    parser.add_argument("--quick", action="store_true", help="short races: a look, not a result")
    parser.add_argument(
        "--out", type=Path, help="the JSON file; by default benchmarks/results/<date>-<cpu>.json"
    )
    options = parser.parse_args(arguments)
    options.seconds, options.rounds = (0.1, 5) if options.quick else (options.seconds, 11)
    unknown = [op for op in options.ops.split(",") if op not in ROOMS]
    if unknown:
        parser.error(f"--ops: {', '.join(unknown)} must be of {', '.join(ROOMS)}")
    return options


def thread_counts(text: str) -> list[int]:
    every = torch.get_num_threads()
    return sorted({every if word == "all" else int(word) for word in text.split(",")})


def main() -> None:
    options = parse()
    console = Console()
    facts = machine()
    wanted = [
        (op, problem, layout)
        for op in options.ops.split(",")
        for problem in problems(op)
        for layout in layouts(problem, options.layout.split(","))
        if re.search(options.filter, f"{op} {problem}")
    ]
    counts = thread_counts(options.threads)
    console.print(f"{facts['cpu']}, {facts['isa']}, torch {facts['torch']}, commit {facts['commit']}")
    ceilings, rows = {}, []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("benchmarks", total=len(wanted) * len(counts))
        for threads in counts:
            torch.set_num_threads(threads)
            ceilings[threads] = {"GFLOP/s": _C.fma_gflops(threads), "GB/s": _C.copy_gbps(threads)}
            limits = ", ".join(f"{value:.0f} {unit}" for unit, value in ceilings[threads].items())
            console.print(f"ceiling at {threads} thread(s): {limits}")
            for op, problem, layout in wanted:
                for contest in ROOMS[op](problem, layout, getattr(torch, options.dtype)):
                    rows.append(measure(contest, ceilings[threads], threads, options))
                    progress.console.print(line(rows[-1]), soft_wrap=True, highlight=False)
                progress.advance(task)
    slug = re.sub(r"\W+", "-", facts["cpu"]).strip("-").lower()
    out = options.out or ROOT / "benchmarks/results" / f"{facts['date']}-{slug}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": facts, "quick": options.quick, "ceilings": ceilings, "rows": rows}
    out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"{len(rows)} rows in {out}")


if __name__ == "__main__":
    main()
