"""nvcc, for setup.py and scripts/cuda_check.py: where it is, what it is told, and objects that are kept.

torch's CUDAExtension is not used: the kernels include no torch header, so they compile the same whether torch has
CUDA or not, and torch's compiler settings would only add to the time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_ARCHS = "80+ptx 90a"  # PTX of the lowest serves what has no code of its own


def find() -> str | None:
    """nvcc of CUDA_HOME, of PATH, or where toolkits are installed."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    usual = [Path(home) / "bin/nvcc"] if home else []
    found = shutil.which("nvcc")
    usual += [Path(found)] if found else []
    usual += [Path("/usr/local/cuda/bin/nvcc")]
    return next((str(p) for p in usual if p.is_file()), None)


def wanted(torch_cuda: str | None) -> bool:
    """CONVNORM_CUDA=1 or 0 says; else when there is an nvcc and a torch that could run its kernels."""
    asked = os.environ.get("CONVNORM_CUDA", "").strip()
    if asked not in ("", "0", "1"):
        sys.exit(f"convnorm: CONVNORM_CUDA is '{asked}', must be 1 (build CUDA kernels), 0 (do not) or unset")
    if asked == "1" and find() is None:
        sys.exit("convnorm: CONVNORM_CUDA=1, but no nvcc was found: put it on PATH or set CUDA_HOME")
    return asked == "1" or (asked == "" and torch_cuda is not None and find() is not None)


def architectures() -> dict[str, bool]:
    """{"80": with PTX, "90a": without} of CONVNORM_CUDA_ARCHS."""
    text = os.environ.get("CONVNORM_CUDA_ARCHS", "").strip() or DEFAULT_ARCHS
    rows = re.findall(r"[^\s,;]+", text)
    for row in rows:
        if not re.fullmatch(r"\d{2,3}[af]?(\+ptx)?", row):
            sys.exit(f"convnorm: CONVNORM_CUDA_ARCHS has '{row}', must be like '{DEFAULT_ARCHS}'")
    return {row.removesuffix("+ptx"): row.endswith("+ptx") for row in rows}


def flags(archs: dict[str, bool]) -> list[str]:
    code = [
        f"-gencode=arch=compute_{a},code=[sm_{a}{f',compute_{a}' if ptx else ''}]" for a, ptx in archs.items()
    ]
    return [
        "-std=c++20",
        "-O3",
        "--expt-relaxed-constexpr",  # std::array of common/window.h in kernels
        "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas",
        "-Xptxas=-v,-warn-spills",
        f'-DCONVNORM_CUDA_ARCHS="{" ".join(f"sm_{a}" for a in archs)}"',
        "-I" + str(ROOT / "csrc"),
        *code,
    ]


def sources() -> list[Path]:
    return sorted((ROOT / "csrc").rglob("*.cu"))


def headers() -> list[Path]:
    return sorted(p for end in ("*.h", "*.cuh") for p in (ROOT / "csrc").rglob(end))


def _newer(path: Path, others: list[Path]) -> bool:
    return path.is_file() and all(p.stat().st_mtime <= path.stat().st_mtime for p in others if p.is_file())


def _depends(listing: Path) -> list[Path]:
    """The files that a compiled object was made of; compilers write them as a rule of make."""
    if not listing.is_file():
        return [listing]
    return [Path(name) for name in listing.read_text().replace("\\\n", " ").split(":", 1)[1].split()]


def compile_one(nvcc: str, source: Path, folder: Path, archs: dict[str, bool]) -> Path:
    """The object, compiled unless it is newer than everything it was made of; what ptxas said lies beside it."""
    stem = folder / str(source.relative_to(ROOT)).replace("/", "_")
    target, log, listing = (stem.with_suffix(end) for end in (".cu.o", ".cu.log", ".cu.d"))
    command = [nvcc, *flags(archs), "-MMD", "-MF", str(listing), "-c", str(source), "-o", str(target)]
    same = log.is_file() and log.read_text().startswith(" ".join(command))
    if same and listing.is_file() and _newer(target, [source, *_depends(listing)]):
        return target
    print(f"nvcc {source.relative_to(ROOT)} for {', '.join(f'sm_{a}' for a in archs)}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    if done.returncode:
        target.unlink(missing_ok=True)
        said = [line for line in (done.stdout + done.stderr).splitlines() if not re.match("ptxas info|    ", line)]
        sys.exit("\n".join([" ".join(command), *said]))
    log.write_text(" ".join(command) + "\n" + done.stdout + done.stderr)
    return target


def compile_all(folder: Path, archs: dict[str, bool] | None = None, jobs: int = 1) -> list[Path]:
    """Objects of every .cu file."""
    nvcc = find()
    assert nvcc, "no nvcc"
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda s: compile_one(nvcc, s, folder, archs or architectures()), sources()))


def link_flags() -> list[str]:
    """The CUDA runtime inside of the shared object, so that none has to be installed; libtorch as it is named.

    -ltorch brings libtorch_cuda, whose stream is looked up when the object is loaded; without --no-as-needed the
    linker drops it, since no other symbol is libtorch's own.
    """
    nvcc = find()
    assert nvcc, "no nvcc"
    said = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    folders = [f for line in re.findall(r"#\$ LIBRARIES=(.*)", said) for f in re.findall(r'-L"?([^"\s]+)', line)]
    top = re.search(r"#\$ TOP=(.*)", said)
    folders += [f"{top.group(1)}/{name}" for name in ("lib64", "lib")] if top else []
    for folder in folders:
        runtime = Path(folder) / "libcudart_static.a"
        if runtime.is_file():
            return [str(runtime), "-lrt", "-ldl", "-lpthread", "-Wl,--no-as-needed", "-ltorch"]
    sys.exit(f"convnorm: libcudart_static.a is in none of {', '.join(folders)}")
