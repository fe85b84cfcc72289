"""What a measurement is worth nothing without: the machine, the versions, the commit, the ceilings."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import _C, backends

_ROOT = Path(__file__).resolve().parents[2]


def cpu_name() -> str:
    """The processor, as it calls itself."""
    try:
        found = name_in_cpuinfo(Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found or platform.processor() or platform.machine()


def name_in_cpuinfo(text: str) -> str | None:
    """The first processor's model name; with family and model where a virtual machine hides which one it is."""
    first = text.partition("\n\n")[0].splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
    name = fields.get("model name")
    if not name or re.search(r"\d", name) or "cpu family" not in fields:
        return name
    return f"{name}, family {fields['cpu family']}, model {fields.get('model', '?')}"


def commit() -> str:
    """The commit of the clone that convnorm runs from; ``installed`` without a clone, ``unknown`` without git."""
    if not (_ROOT / "csrc").is_dir():  # an installation may lie in somebody else's repository
        return "installed"

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True)
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def machine() -> dict[str, Any]:
    """Processor, versions, commit and date."""
    build = _C.build_info()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": backends.isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "convnorm": build["version"],
        "compiler": build["compiler"],
        "commit": commit(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def keep_freed_memory() -> None:
    """Memory that players free stays with the process (glibc): a ratio is not of calls that touch it anew by luck.

    Runtimes with an arena of their own keep it too. A new page costs a microsecond, an output of 12 MB has 3,000; and
    blocks of 32 MB and more would be mapped anew for every call, or not, by luck.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mapped_blocks = -1, -4
        mallopt(mapped_blocks, 0)
        mallopt(trim_threshold, (1 << 31) - 1)


def ceilings(threads: int) -> dict[str, float]:
    """What so many threads can do at most, measured now: GFLOP/s of multiply-adds and GB/s of copying."""
    return {"GFLOP/s": _C.fma_gflops(threads), "GB/s": _C.copy_gbps(threads)}


def thread_counts(text: str) -> list[int]:
    """``"1,all"`` as numbers, ``"doubling"`` as 1, 2, 4, ... and all; ValueError for what is neither, or below 1."""
    every = torch.get_num_threads()
    doubling = [str(2**i) for i in range((every - 1).bit_length())]
    words = text.replace("doubling", ",".join([*doubling, "all"])).split(",")
    counts = {every if word == "all" else int(word) for word in words}
    if min(counts) < 1:
        raise ValueError(text)
    return sorted(counts)
