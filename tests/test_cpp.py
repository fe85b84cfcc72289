"""C++ unit tests: tests/cpp/*_test.cpp, built by the compiler alone (no torch) and run under ASan and UBSan.

A test named after a room links its kernels, which know nothing of torch; std::thread spreads the work. Kernels for
one instruction set are compiled with sanitizers; the others' are the very objects convnorm was linked from. Tests
keep operands between guard pages (tests/cpp/guarded.h), which watch all of them.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import convnorm

ROOT = Path(__file__).resolve().parent.parent
CPP = ROOT / "tests/cpp"
BUILD = ROOT / "build/cpp_tests"
FLAGS = ["-std=c++20", "-Og", "-g1", "-Wall", "-Wno-psabi", "-Wno-unused-function", "-Wno-unknown-pragmas"]
# Left out are checks of every access that double the time to compile; ASan and the hardware see what they would.
LEFT_OUT = "-fno-sanitize=object-size,null,alignment,pointer-overflow"
SANITIZE = ["-fsanitize=address,undefined", LEFT_OUT, "-fno-sanitize-recover=all"]
COMMON = [
    "csrc/common/registry.cpp",
    "csrc/cpu/isa.cpp",
    "csrc/cpu/scratch.cpp",
    "tests/cpp/parallel_threads.cpp",
]
BUILT = ROOT / "build" / f"objects-{sys.implementation.cache_tag}-torch-{torch.__version__}"  # as in setup.py
CPU = Path("/proc/cpuinfo")
SANITIZED = "avx2" if CPU.exists() and "avx2" in CPU.read_text() else "generic"
TESTS = sorted(CPP.glob("*_test.cpp"))
CALLED = {"batch_norm_max_pool": ["batch_norm", "max_pool"]}  # rooms whose kernels call those of others


def sources(test):
    """The test, what carries its name, and the shared parts."""
    stem = test.stem.removesuffix("_test")
    rooms = [ROOT / "csrc/ops" / room for room in (stem, *CALLED.get(stem, []))]
    files = [p for room in rooms for p in room.rglob("*.cpp")]
    kernels = [p for p in files if "common/tensor.h" not in p.read_text()]  # not the host files
    helpers = [p for p in CPP.glob(f"{stem}_*.cpp") if p != test]
    return [test, *helpers, *sorted(kernels), *(ROOT / name for name in COMMON)]


def newest(folders, ends):
    return max(p.stat().st_mtime for folder in folders for end in ends for p in folder.rglob(end))


def newest_header():
    return newest([ROOT / "csrc", CPP], ["*.h", "*.cuh"])


def build_is_current():
    """Whether convnorm was linked after the last change of its sources."""
    return Path(convnorm._C.__file__).stat().st_mtime >= newest([ROOT / "csrc"], ["*.h", "*.cpp"])


def sanitized(source):
    """Whether this file is compiled with sanitizers: all but the bodies of the other instruction sets."""
    isa = source.stem.rpartition("_")[2]
    return isa not in ("generic", "avx2", "avx512", "avx512bf16", "amx") or isa == SANITIZED


def compiled(source, headers, first_flags=()):
    """The object file, compiled unless it is newer than its source and every header."""
    built = BUILT / source.relative_to(ROOT).with_suffix(".o")
    if not sanitized(source) and built.exists() and build_is_current():
        return built
    target = BUILD / (str(source.relative_to(ROOT)).replace("/", "_") + ".o")
    if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime, headers):
        sanitize = SANITIZE if sanitized(source) else []
        command = [os.environ.get("CXX", "g++"), *FLAGS, *sanitize, *first_flags, "-Icsrc", "-Itests/cpp"]
        unfinished = target.with_suffix(f".{os.getpid()}")  # another worker may be at the same file
        run([*command, "-c", source, "-o", unfinished])
        unfinished.replace(target)
    return target


def run(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("test", TESTS, ids=lambda p: p.stem)
def test_cpp(test):
    BUILD.mkdir(parents=True, exist_ok=True)
    headers = newest_header()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: compiled(source, headers), sources(test)))
    program = BUILD / test.stem
    run([os.environ.get("CXX", "g++"), *SANITIZE, "-pthread", *objects, "-o", program])
    run([program])
