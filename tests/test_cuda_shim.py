"""Kernels for CUDA without a GPU: the .cu files compiled by g++, their threads run as fibers, against the CPU's loops.

tests/cpp/shim/ stands in for the CUDA runtime. Address and undefined-behaviour sanitizers are on; threads and blocks
run in random order, and every result must be the same bits in another one.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.test_cpp import BUILD, COMMON, CPP, ROOT, SANITIZE, compiled, newest_header, run

TESTS = sorted((CPP / "cuda").glob("*_test.cpp"))
ROOMS = {"adaptive_max_pool": "max_pool", "conv_depthwise": "conv"}  # of tests that carry another name
REFERENCES = {  # what a test's kernels are compared with
    "adaptive_max_pool": ["cpu/adaptive_max_pool_direct.cpp", "cpu/max_pool_indices.cpp"],
    "batch_norm": ["cpu/batch_norm_reference.cpp"],
    "group_norm": ["cpu/group_norm_reference.cpp"],
    "layer_norm": ["cpu/layer_norm_reference.cpp"],
    "max_pool": ["cpu/max_pool_direct.cpp"],
    "avg_pool": ["cpu/avg_pool_direct.cpp"],
    "conv": ["cpu/conv_im2col.cpp", "conv_geometry.cpp"],
    "conv_depthwise": ["cpu/conv_im2col.cpp", "conv_geometry.cpp"],
}
ALSO = {"group_norm": ["batch_norm"]}  # rooms whose kernels it uses


@pytest.mark.parametrize("test", TESTS, ids=lambda p: p.stem)
def test_kernels_run_by_the_host(test):
    stem = test.stem.removesuffix("_test")
    room = ROOT / "csrc/ops" / ROOMS.get(stem, stem)
    rooms = [room, *(room.parent / other for other in ALSO.get(room.name, []))]
    kernels = sorted(p for r in rooms for p in r.rglob("*.cu"))
    assert kernels, f"{test.name} tests no kernel"
    references = [room / name for name in REFERENCES[stem]]
    common = [ROOT / name for name in COMMON]
    BUILD.mkdir(parents=True, exist_ok=True)
    headers = newest_header()
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        shimmed = [test, *kernels, CPP / "shim/fibers.cpp"]
        objects = list(pool.map(lambda s: compiled(s, headers, ["-Itests/cpp/shim", "-x", "c++"]), shimmed))
        objects += pool.map(lambda s: compiled(s, headers), [*references, *common])
    program = BUILD / f"cuda_{test.stem}"
    run([os.environ.get("CXX", "g++"), *SANITIZE, "-pthread", *objects, "-o", program])
    run([program])


def test_the_benchmark_for_gpus_runs_in_rehearsal(tmp_path):
    """On tiny tensors of the CPU: that it can run, not what it finds."""
    rows = tmp_path / "rows.json"
    run([sys.executable, "scripts/gpu_bench.py", "--rehearse", "--out", rows])
    found = json.loads(rows.read_text())
    assert {row["op"] for row in found} >= {"batch_norm_relu", "batch_norm_add_relu_backward", "max_pool", "conv"}
    assert all("error" not in peer for row in found for peer in row["times"].values())
