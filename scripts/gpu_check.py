"""The steps of scripts/gpu_check.sh, each with its share of the time; what fails is written down, the rest goes on."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {"memcheck": [], "racecheck": [], "initcheck": []}
# The tests that compute-sanitizer runs, all small.
SMALL = "same_bits or empty or another_stream or two_passes or unpooling"


class Steps:
    """Runs commands until a deadline, and keeps what they said."""

    def __init__(self, minutes: float) -> None:
        self.began, self.deadline = time.monotonic(), time.monotonic() + 60 * minutes
        self.results: dict[str, Any] = {}

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, name: str, command: list[str], most: float, **environment: str) -> bool:
        """Whether the command ended well within ``most`` seconds."""
        limit = min(most, self.left())
        if limit < 5:
            self.results[name] = {"status": "no time left"}
            return False
        print(f"== {name} (at most {limit:.0f} s)", flush=True)
        began = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=limit
            )
            status, said = ("ok" if done.returncode == 0 else "failed"), done.stdout + done.stderr
        except subprocess.TimeoutExpired as late:
            status, said = "timed out", str(late.stdout or "")
        lines = said.strip().splitlines()
        kept = [line for line in lines if not line.startswith("  ")][-40:]
        seconds = round(time.monotonic() - began, 1)
        self.results[name] = {"status": status, "seconds": seconds, "tail": kept}
        print("\n".join(lines[-15:] if status == "ok" else lines[-60:]), f"\n   {status}, {seconds} s", flush=True)
        return status == "ok"


def build(steps: Steps) -> bool:
    """In place, for this GPU only."""
    import torch

    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    arch = f"{major}{minor}" + ("a" if major == 9 else "")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return steps.run("build", command, 300, CONVNORM_CUDA="1", CONVNORM_CUDA_ARCHS=arch)


def tests(steps: Steps) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    steps.run("tests", command, 240)


def contract(steps: Steps) -> None:
    """What every op promises beside its values, with inputs on the GPU: torch.compile, torch.func, export, strides."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/test_contract.py"]
    command += ["-k", "not threads and not instruction_set"]  # those are the CPU's
    steps.run("contract", command, 150, CONVNORM_TEST_DEVICE="cuda")


def sanitizer(steps: Steps) -> None:
    nvcc = shutil.which("nvcc")
    beside = Path(nvcc).resolve().parent / "compute-sanitizer" if nvcc else Path("/nowhere")
    tool = shutil.which("compute-sanitizer") or (str(beside) if beside.is_file() else None)
    for name, options in TOOLS.items():
        if tool is None:
            steps.results[f"sanitizer {name}"] = {"status": "no compute-sanitizer here"}
            continue
        command = [tool, "--tool", name, "--error-exitcode", "9", "--target-processes", "all", *options]
        command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py", "-k", SMALL]
        # torch's cache of memory hides accesses beyond a tensor
        steps.run(f"sanitizer {name}", command, 60, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def bench(steps: Steps, out: Path, rehearse: bool) -> None:
    rows = out.with_suffix(".rows.json")
    rows.unlink(missing_ok=True)
    command = [sys.executable, "scripts/gpu_bench.py", "--out", str(rows), "--seconds", str(int(steps.left() - 15))]
    steps.run("bench", command + ["--rehearse"] * rehearse, steps.left())
    if rows.is_file():
        steps.results["rows"] = json.loads(rows.read_text())


def facts() -> dict[str, Any]:
    """Versions and clocks that a measurement is worth nothing without."""
    import torch

    query = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    found["cudnn"] = torch.backends.cudnn.version()
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()
    found["commit"] = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "gpu_check.json", help="the results (%(default)s)")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything (%(default)s)")
    parser.add_argument("--skip", default="", help="steps to leave out: build,tests,contract,sanitizer,bench")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: the steps' own code, on tiny tensors")
    arguments = parser.parse_args()
    steps, skip = Steps(arguments.minutes), arguments.skip.split(",")
    before = facts()
    built = "build" in skip or build(steps)
    if built:
        if "tests" not in skip:
            tests(steps)
        if "contract" not in skip:
            contract(steps)
        if "sanitizer" not in skip:
            sanitizer(steps)
        if "bench" not in skip:
            bench(steps, arguments.out, arguments.rehearse)
    seconds = round(time.monotonic() - steps.began, 1)
    report = {"before": before, "after": facts(), "seconds": seconds, **steps.results}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    failed = [k for k, v in steps.results.items() if isinstance(v, dict) and v.get("status") in ("failed", "timed out")]
    print(f"== {arguments.out}; {seconds} s; {'failed: ' + ', '.join(failed) if failed else 'all that ran is well'}")
    return 1 if failed or not built else 0


if __name__ == "__main__":
    sys.exit(main())
