"""The race: players take turns, round by round, in one process.

The ratio is the median over the rounds of torch's time / ours; it is called a win or a loss only when the middle half
of the rounds agrees.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from .. import _C
from ..testing import max_error
from .peers import Player, Refused, player
from .problem import Contest

LEAST_SAMPLE = 2e-3  # seconds; shorter calls are repeated within one sample


def clock(function: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call, the mean of ``repeats`` in a row."""
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
    """The names of the kernels that one call runs."""
    _C.trace_begin()
    try:
        function()
    finally:
        verdicts = _C.trace_end()
    return " + ".join(dict.fromkeys(v["kernel"] for v in verdicts if v["chosen"]))


def scratch(function: Callable[[], Any]) -> int:
    """Bytes of work memory that convnorm's kernels need in one call, all threads together."""
    _C.scratch_peak_reset()
    function()
    return _C.scratch_peak()


def verdict(low: float, high: float) -> str:
    """What the quartiles of the ratio say."""
    return "win" if low > 1 else "loss" if high < 1 else "even"


def standing(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """A rival's times and their ratio to ours, round by round."""
    low, ratio, high = statistics.quantiles([b / a for a, b in zip(ours, theirs, strict=True)], n=4)
    return {"us": statistics.median(theirs) * 1e6, "us_min": min(theirs) * 1e6, "ratio": ratio, "ratio_low": low,
            "ratio_high": high, "verdict": verdict(low, high)}  # fmt: skip


def _peers(contest: Contest, names: list[str]) -> tuple[dict[str, Player], dict[str, Any]]:
    """(those that race, by name; those that refuse, with their words)."""
    players: dict[str, Player] = {}
    refused: dict[str, Any] = {}
    if contest.forward is None or not names:
        return players, refused
    forward = contest.forward()
    for name in names:
        try:
            players[name] = player(name, forward)
        except Refused as error:
            refused[name] = {"refused": str(error)}
    return players, refused


def measure(contest: Contest, ceiling: dict[str, float], threads: int, seconds: float, rounds: int,
            peers: list[str]) -> dict[str, Any]:
    """One row of a result: times, rates, ratio with its quartiles, errors against float64, the kernels that ran.

    ``seconds`` are for two players; each peer beside them adds half of that.
    """
    playing, told = _peers(contest, peers)
    players = [contest.ours, contest.theirs, *playing.values()]
    reference = contest.reference()
    errors = [relative_error(call(), reference) for call in players]
    del reference
    ours, theirs, *rest = race(players, seconds * len(players) / 2, rounds)
    for name, times, error in zip(playing, rest, errors[2:], strict=True):
        told[name] = {**standing(ours, times), "error": error}
    torchs = standing(ours, theirs)
    median = statistics.median(ours)
    unit, work = contest.unit, contest.flops if contest.unit == "GFLOP/s" else contest.bytes
    rate = work / median / 1e9
    return {
        "op": contest.op,
        "dtype": str(contest.dtype).removeprefix("torch."),
        "layout": contest.layout,
        "problem": str(contest.problem),
        "source": contest.problem.source,
        "count": contest.count,
        "threads": threads,
        "kernel": chosen_kernels(contest.ours),
        "scratch_bytes": scratch(contest.ours),
        "flops": contest.flops,
        "bytes": contest.bytes,
        "us": median * 1e6,
        "us_min": min(ours) * 1e6,
        "torch_us": torchs["us"],
        "torch_us_min": torchs["us_min"],
        "rate": rate,
        "unit": unit,
        "ceiling_percent": 100 * rate / ceiling[unit],
        "torch_rate": work / statistics.median(theirs) / 1e9,
        **{key: torchs[key] for key in ("ratio", "ratio_low", "ratio_high", "verdict")},
        "error": errors[0],
        "torch_error": errors[1],
        "rounds": len(ours),
        **(contest.extra() if contest.extra else {}),
        **({"peers": {name: told[name] for name in peers if name in told}} if peers else {}),
    }
