"""Compiles every kernel for aarch64 and runs the C++ unit tests under emulation: the generic kernels on another
processor family. `make aarch64-check`.

Needs a cross compiler and qemu's user mode (Debian: apt install g++-aarch64-linux-gnu qemu-user). No torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/aarch64"
COMPILER = os.environ.get("AARCH64_CXX", "aarch64-linux-gnu-g++")
EMULATOR = os.environ.get("AARCH64_RUN", "qemu-aarch64")
FLAGS = ["-std=c++20", "-O2", "-Wall", "-Wno-psabi", "-Wno-unused-function", "-Wno-unknown-pragmas", "-static",
         "-Icsrc", "-Itests/cpp"]  # fmt: skip
SHARED = ["csrc/common/registry.cpp", "csrc/cpu/isa.cpp", "csrc/cpu/scratch.cpp", "tests/cpp/parallel_threads.cpp"]


def kernels() -> list[Path]:
    """All that knows nothing of torch."""
    rooms = sorted((ROOT / "csrc/ops").rglob("*.cpp"))
    return [p for p in rooms if not any(name in p.read_text() for name in ("common/tensor.h", "_host.h"))]


def compiled(source: Path) -> Path:
    """The object file, compiled unless it is newer than its source and every header."""
    target = BUILD / (str(source.relative_to(ROOT)).replace("/", "_") + ".o")
    headers = (p.stat().st_mtime for folder in ("csrc", "tests/cpp") for p in (ROOT / folder).rglob("*.h"))
    if target.exists() and target.stat().st_mtime > max(source.stat().st_mtime, *headers):
        return target
    done = subprocess.run([COMPILER, *FLAGS, "-c", source, "-o", target], cwd=ROOT, capture_output=True, text=True)
    print(f"aarch64: {source.relative_to(ROOT)}{'' if done.returncode == 0 else ' FAILED'}", flush=True)
    if done.returncode:
        sys.exit(done.stderr)
    return target


def main() -> int:
    for tool in (COMPILER, EMULATOR):
        if not shutil.which(tool):
            sys.exit(f"aarch64_check needs {tool} (Debian: apt install g++-aarch64-linux-gnu qemu-user)")
    BUILD.mkdir(parents=True, exist_ok=True)
    tests = sorted((ROOT / "tests/cpp").glob("*_test.cpp"))
    helpers = sorted(p for t in tests for p in t.parent.glob(f"{t.stem.removesuffix('_test')}_*.cpp") if p not in tests)
    files = dict.fromkeys([*kernels(), *(ROOT / name for name in SHARED), *helpers, *tests])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = dict(zip(files, pool.map(compiled, files), strict=True))
    for test in tests:
        stem = test.stem.removesuffix("_test")
        room, own = ROOT / "csrc/ops" / stem, [test, *(p for p in helpers if p.stem.startswith(stem))]
        linked = [o for p, o in objects.items() if room in p.parents or p in own or str(p.relative_to(ROOT)) in SHARED]
        program = BUILD / test.stem
        subprocess.run([COMPILER, "-static", "-pthread", *linked, "-o", program], cwd=ROOT, check=True)
        started = time.monotonic()
        subprocess.run([EMULATOR, program], cwd=ROOT, check=True)
        print(f"aarch64: {test.stem} passed in {time.monotonic() - started:.0f} s", flush=True)
    print(f"aarch64: {len(objects)} files compiled, {len(tests)} test programs passed under {EMULATOR}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
