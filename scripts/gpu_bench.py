"""convnorm's kernels for CUDA against torch eager (cudnn.benchmark on) and torch.compile, for scripts/gpu_check.sh.

Forward and backward ops are timed apart, by CUDA events around replays of a graph of CALLS calls that walk over enough
sets of buffers to leave no tensor in L2. Peers take turns, every version is timed twice, and the spread of its times
is kept: a ratio inside it is no difference. Bytes are the fewest that the op must move.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import convnorm

CALLS, REPLAYS, COLD = 10, 30, 150 << 20
NORMS = [  # (n, c, h): ResNet-50 and VGG
    (256, 64, 112), (256, 256, 56), (256, 64, 56), (256, 512, 28), (256, 1024, 14), (64, 256, 14), (32, 2048, 7),
]  # fmt: skip
SHARES = [(256, 2048, 7, 1), (256, 512, 14, 7), (64, 256, 56, 7)]  # adaptive: (n, c, h, output size)
POOLS = [(256, 64, 112, 3, 2, 1), (64, 64, 224, 2, 2, 0), (128, 192, 28, 3, 1, 1), (256, 2048, 7, 7, 1, 0)]
CONVS = [(64, 64, 64, 56, 3, 1), (64, 64, 256, 56, 1, 1), (64, 256, 256, 14, 3, 1), (64, 3, 64, 224, 7, 2)]
# (n, c, h, r, stride)
DEPTHWISE = [(128, 96, 56, 7, 1), (256, 144, 56, 3, 2), (256, 576, 14, 3, 1), (256, 32, 112, 3, 1)]
ops = torch.ops.convnorm
Call = Callable[..., Any]


class Clock:
    """Microseconds of one call. On the CPU (a rehearsal) by the host's clock, without graphs."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def prepare(self, function: Call, sets: list[tuple]) -> Call:
        """Something to call that runs ``function`` CALLS times."""

        def calls() -> None:
            for i in range(CALLS):
                function(*sets[i % len(sets)])

        if not self.cuda:
            return calls
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                calls()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            calls()
        return graph.replay

    def once(self, replay: Call) -> float:
        if not self.cuda:
            began = time.perf_counter()
            replay()
            return (time.perf_counter() - began) / CALLS * 1e6
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / CALLS * 1e3


def race(clock: Clock, peers: dict[str, tuple[Call, list[tuple]]], replays: int) -> dict[str, Any]:
    """{name: {us, spread, error}}: medians over replays in turns, of two rounds."""
    ready: dict[str, Call] = {}
    found: dict[str, Any] = {name: {} for name in peers}
    for name, (function, sets) in peers.items():
        try:
            ready[name] = clock.prepare(function, sets)
        except Exception as error:  # a peer that cannot run such a shape is a result, too
            found[name]["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    rounds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(2):
        times: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(replays):
            for name, replay in ready.items():
                times[name].append(clock.once(replay))
        for name, values in times.items():
            rounds[name].append(statistics.median(values))
    for name, (one, two) in rounds.items():
        found[name] |= {"us": round(min(one, two), 2), "spread": round(abs(one - two) / min(one, two), 3)}
    return found


def kernels_of(function: Call, arguments: tuple, device: str) -> list[str]:
    """The kernels' names, once: they show hidden changes of layout."""
    if device != "cuda":
        return []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function(*arguments)
        torch.cuda.synchronize()
    return sorted({e.key[:120] for e in profile.key_averages()})


class Tensors:
    """Random normal tensors of a dtype and layout; enough sets of them that none is in L2."""

    def __init__(self, dtype: torch.dtype, layout: torch.memory_format, device: str) -> None:
        self.dtype, self.layout, self.device = dtype, layout, device

    def image(self, *shape: int) -> torch.Tensor:
        t = torch.randn(shape, device=self.device, dtype=self.dtype)
        return t.contiguous(memory_format=self.layout) if len(shape) == 4 else t

    def compiled(self, function: Call) -> Call:
        return torch.compile(function, dynamic=False) if self.device == "cuda" else function

    def sets(self, make: Call) -> list[tuple]:
        first = make()
        size = sum(t.numel() * t.element_size() for t in first if isinstance(t, torch.Tensor))
        count = min(CALLS, math.ceil(COLD / size) + 1) if self.device == "cuda" else 1
        return [first, *(make() for _ in range(count - 1))]


def norm_rows(t: Tensors, n: int, c: int, h: int, residual: bool) -> dict[str, tuple[dict[str, Any], int]]:
    shape, w, b = (n, c, h, h), t.image(c).abs().float(), t.image(c).float()
    elements = n * c * h * h

    def eager(x: torch.Tensor, r: torch.Tensor | None) -> torch.Tensor:
        y = F.batch_norm(x, None, None, w, b, True)
        return F.relu(y if r is None else y + r)

    def ours(x: torch.Tensor, r: torch.Tensor | None) -> Any:
        return ops.batch_norm_train(x, w, b, r, 1e-5, True)

    def two_passes(x: torch.Tensor, r: torch.Tensor | None) -> Any:
        """Where ours is one kernel; in other cases this is ours again."""
        with convnorm.backends.force(batch_norm_train="batch_norm_rows_cuda"):
            return ours(x, r)

    sets = t.sets(lambda: (t.image(*shape), t.image(*shape) if residual else None))
    forward = {name: (f, sets) for name, f in (("ours", ours), ("eager", eager), ("compile", t.compiled(eager)))}
    if t.device == "cuda" and t.layout == torch.channels_last:
        forward["two passes"] = (two_passes, sets)

    def saved() -> tuple:
        x, r, g = t.image(*shape), t.image(*shape) if residual else None, t.image(*shape)
        out, stats = ours(x, r)
        return g, x, out if residual else None, stats, r

    def back(g: torch.Tensor, x: torch.Tensor, out: Any, stats: torch.Tensor, r: Any) -> Any:
        return ops.batch_norm_backward(g, x, w, b, out, stats, 1e-5, True, True, True, True, residual)

    def eager_back(g: torch.Tensor, x: torch.Tensor, y: torch.Tensor, m: torch.Tensor, s: torch.Tensor) -> Any:
        g = torch.ops.aten.threshold_backward(g, y, 0)
        return g, torch.ops.aten.native_batch_norm_backward(g, x, w, None, None, m, s, True, 1e-5, [True] * 3)

    def eager_saved() -> tuple:
        x, g = t.image(*shape), t.image(*shape)
        y, m, s = torch.ops.aten.native_batch_norm(x, w, b, None, None, True, 0.1, 1e-5)
        return g, x, y, m, s

    theirs = t.sets(eager_saved)
    backward = {
        "ours": (back, t.sets(saved)),
        "eager": (eager_back, theirs),
        "compile": (t.compiled(eager_back), theirs),
    }
    name = "batch_norm_add_relu" if residual else "batch_norm_relu"
    size = elements * t.image(1).element_size()
    return {name: (forward, size * (2 + residual)), f"{name}_backward": (backward, size * (3 + 2 * residual))}


def pool_rows(t: Tensors, n: int, c: int, h: int, k: int, s: int, p: int) -> dict[str, tuple[dict[str, Any], int]]:
    o = (h + 2 * p - k) // s + 1
    sets = t.sets(lambda: (t.image(n, c, h, h),))
    window = [k, k, s, s, p, p, 1, 1]

    def eager(x: torch.Tensor) -> Any:
        return F.max_pool2d(x, k, s, p, return_indices=True)

    forward = {
        "ours": (lambda x: ops.max_pool_forward(x, window, False, 1), sets),
        "eager": (eager, sets),
        "compile": (t.compiled(lambda x: F.max_pool2d(x, k, s, p)), sets),
    }

    def saved(function: Call) -> Call:
        return lambda: (t.image(n, c, o, o), (x := t.image(n, c, h, h)), function(x)[1])

    def back(g: torch.Tensor, x: torch.Tensor, argmax: torch.Tensor) -> torch.Tensor:
        return ops.max_pool_backward(g, argmax, list(x.shape), window)

    def eager_back(g: torch.Tensor, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.max_pool2d_with_indices_backward(g, x, [k, k], [s, s], [p, p], [1, 1], False, indices)

    backward = {
        "ours": (back, t.sets(saved(forward["ours"][0]))),
        "eager": (eager_back, t.sets(saved(eager))),
    }
    size, outputs = t.image(1).element_size(), n * c * o * o
    least = n * c * h * h * size + outputs * (size + 1)
    return {"max_pool": (forward, least), "max_pool_backward": (backward, least)}


def index_rows(t: Tensors, n: int, c: int, h: int, o: int) -> dict[str, tuple[dict[str, Any], int]]:
    """Adaptive max pooling and un-pooling, which keep torch's indices."""
    aten, sizes = torch.ops.aten, [o, o]
    channels_last = t.layout == torch.channels_last

    def saved() -> tuple:
        x = t.image(n, c, h, h)
        y, indices = ops.adaptive_max_pool_forward(x, sizes, True)
        return x, y, indices

    sets = t.sets(saved)
    passes = {
        "adaptive_max_pool": (
            lambda x, y, i: ops.adaptive_max_pool_forward(x, sizes, True),
            lambda x, y, i: aten.adaptive_max_pool2d(x, sizes),
        ),
        "adaptive_max_pool_backward": (
            lambda x, y, i: ops.adaptive_max_pool_backward(y, i, list(x.shape), channels_last),
            lambda x, y, i: aten.adaptive_max_pool2d_backward(y, x, i),
        ),
        "max_unpool": (
            lambda x, y, i: ops.max_unpool_forward(y, i, [h, h]),
            lambda x, y, i: aten.max_unpool2d(y, i, [h, h]),
        ),
    }
    size = t.image(1).element_size()
    least = n * c * (h * h * size + o * o * (size + 8))
    return {name: ({"ours": (ours, sets), "eager": (eager, sets)}, least) for name, (ours, eager) in passes.items()}


def conv_rows(
    t: Tensors, n: int, c: int, k: int, h: int, r: int, s: int, groups: int = 1
) -> dict[str, tuple[dict[str, Any], int]]:
    pad, o = r // 2, (h + 2 * (r // 2) - r) // s + 1
    w = t.image(k, c // groups, r, r)
    sets = t.sets(lambda: (t.image(n, c, h, h), t.image(n, k, o, o)))
    geometry = [s, s], [pad] * 4, [1, 1], groups

    def eager_back(x: torch.Tensor, g: torch.Tensor, mask: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            g, x, w, None, [s, s], [pad, pad], [1, 1], False, [0, 0], groups, mask
        )

    size = t.image(1).element_size()
    least = size * (n * c * h * h + n * k * o * o + w.numel())
    passes = {
        "conv": (
            lambda x, g: ops.conv_forward(x, w, None, *geometry),
            lambda x, g: F.conv2d(x, w, None, s, pad, 1, groups),
        ),
        "conv_by_input": (
            lambda x, g: ops.conv_by_input(g, w, list(x.shape), *geometry),
            lambda x, g: eager_back(x, g, [True, False, False]),
        ),
        "conv_by_weight": (
            lambda x, g: ops.conv_by_weight(g, x, list(w.shape), *geometry, False),
            lambda x, g: eager_back(x, g, [False, True, False]),
        ),
    }
    stem = "conv" if groups == 1 else "conv_depthwise"
    return {
        name.replace("conv", stem): ({"ours": (ours, sets), "eager": (eager, sets)}, least)
        for name, (ours, eager) in passes.items()
    }


def depthwise_rows(t: Tensors, n: int, c: int, h: int, r: int, s: int) -> dict[str, tuple[dict[str, Any], int]]:
    return conv_rows(t, n, c, c, h, r, s, groups=c)


def problems(rehearse: bool) -> list[tuple[str, str, torch.dtype, torch.memory_format, Call]]:
    """(shape, layout, dtype, format, tensors -> rows), the most important first."""
    last, rows = torch.channels_last, []
    tiny = [(2, 8, 5)], [(2, 8, 9, 3, 2, 1)], [(2, 8, 7, 2)], [(1, 4, 4, 6, 3, 2)], [(1, 8, 6, 3, 1)]
    usual = NORMS, POOLS, SHARES, CONVS, DEPTHWISE
    norms, pools, shares, convs, depthwise = tiny if rehearse else usual  # type: ignore[assignment]
    for layout, fmt in (("channels_last", last), ("contiguous", torch.contiguous_format)):
        for dtype in (torch.bfloat16, torch.float32):
            for shape in norms:
                for residual in (False, True):
                    make = lambda t, a=(*shape, residual): norm_rows(t, *a)  # noqa: E731
                    rows.append((f"{shape}", layout, dtype, fmt, make))
            rows += [(f"{a}", layout, dtype, fmt, lambda t, a=a: pool_rows(t, *a)) for a in pools]
            rows += [(f"{a}", layout, dtype, fmt, lambda t, a=a: index_rows(t, *a)) for a in shares]
            rows += [(f"{a}", layout, dtype, fmt, lambda t, a=a: conv_rows(t, *a)) for a in convs]
            rows += [(f"{a}", layout, dtype, fmt, lambda t, a=a: depthwise_rows(t, *a)) for a in depthwise]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rehearse", action="store_true", help="tiny tensors on the CPU: does this script run?")
    arguments = parser.parse_args()
    device, replays = ("cpu", 2) if arguments.rehearse else ("cuda", REPLAYS)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    clock, began, rows = Clock(device), time.monotonic(), []
    torch.manual_seed(0)
    for shape, layout, dtype, fmt, make in problems(arguments.rehearse):
        if time.monotonic() - began > arguments.seconds:
            print(f"no time for {shape} {layout} {dtype} and what follows")
            break
        for op, (peers, least) in make(Tensors(dtype, fmt, device)).items():
            row: dict[str, Any] = {"op": op, "shape": shape, "layout": layout, "dtype": str(dtype)[6:], "bytes": least}
            row["times"] = race(clock, peers, replays)
            row["kernels"] = {n: kernels_of(f, sets[0], device) for n, (f, sets) in peers.items() if n != "compile"}
            if "us" in row["times"]["ours"]:
                row["gbps"] = round(least / row["times"]["ours"]["us"] / 1e3, 1)
            rows.append(row)
            text = "  ".join(f"{n} {v.get('us', v.get('error'))}" for n, v in row["times"].items())
            print(f"{op:28} {shape:28} {layout:13} {row['dtype']:8} {text}  {row.get('gbps')} GB/s", flush=True)
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")  # what was measured stays, whatever comes


if __name__ == "__main__":
    main()
