#!/usr/bin/env bash
# Everything that is to be run on a machine with a GPU, in under ten minutes and without a network: the build from this
# checkout, the tests on CUDA, the contract of all ops there, compute-sanitizer, the benchmark. Needs torch (a CUDA build),
# numpy, pytest, hypothesis, ninja, pybind11, setuptools and nvcc; PYTHON is the interpreter that has them. The result is
# one JSON file:
#
#     scripts/gpu_check.sh [--out results.json] [--minutes 10] [--skip build,tests,contract,sanitizer,bench]
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" scripts/gpu_check.py "$@"
