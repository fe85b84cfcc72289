"""Builds convnorm._C: every csrc/**/*.cpp in one shared object against the LibTorch Stable ABI.

Every csrc/**/*.cu is linked in too where nvcc and a CUDA build of torch are found, or CONVNORM_CUDA=1 asks for it;
CONVNORM_CUDA_ARCHS="80+ptx 90a" are the architectures. Sources are globbed, so a new op needs no change here.
"""

import os
import re
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # pip runs this file from elsewhere

try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as missing:
    sys.exit(
        f"convnorm: building needs the package '{missing.name}', which is not installed here.\n"
        "  Either let pip fetch it:        pip install .\n"
        "  or install it first and then:   pip install --no-build-isolation .\n"
        "  (needed: torch>=2.11, pybind11, ninja, setuptools, wheel)"
    )

from scripts import nvcc  # noqa: E402

CUDA = nvcc.wanted(torch.version.cuda)
STABLE_ABI = "0x020b000000000000"  # LibTorch Stable ABI of torch 2.11: the .so loads on every later torch


def version() -> str:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r'^version = "(.+)"', text, re.M)
    assert found, "pyproject.toml has no version"
    return found.group(1)


def limit_jobs() -> None:
    """MAX_JOBS from cores and memory, unless the user set it: one compiler needs up to 1.5 GB."""
    if "MAX_JOBS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        memory = 8 << 30
    os.environ["MAX_JOBS"] = str(max(1, min(cores, memory // (3 << 29))))


class Build(BuildExtension):
    """BuildExtension that keeps its objects for the next build, and says in the end what was built."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # pip builds an editable install in a temporary folder; here ninja finds what has not changed. One folder per
        # Python and torch, whose headers the objects were compiled with.
        self.build_temp = str(ROOT / "build" / f"objects-{sys.implementation.cache_tag}-torch-{torch.__version__}")

    def run(self) -> None:
        kernels = "CPU kernels"
        linked = Path(self.build_temp) / "linked-with-cuda"
        self.force = self.force or linked.is_file() != CUDA  # no source has changed, but what is linked has
        if CUDA:
            objects = nvcc.compile_all(Path(self.build_temp) / "cuda", jobs=int(os.environ["MAX_JOBS"]))
            print(f"objects: {Path(self.build_temp) / 'cuda'}")
            self.extensions[0].extra_objects = [str(o) for o in objects]
            self.extensions[0].extra_link_args += nvcc.link_flags()
            kernels = f"kernels for the CPU and CUDA ({', '.join(f'sm_{a}' for a in nvcc.architectures())})"
        super().run()
        if CUDA:
            linked.touch()
        else:
            linked.unlink(missing_ok=True)
        print(f"convnorm {version()}: built _C against torch {torch.__version__} (stable ABI 2.11), {kernels}.")


def extension() -> CppExtension:
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.cpp"))
    flags = [
        "-std=c++20",
        "-O3",
        "-g0",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-psabi",
        "-Wno-unused-function",
        "-Wno-unknown-pragmas",
        "-Wno-ignored-attributes",
        "-Wno-maybe-uninitialized",  # GCC 12 says both of its own avx512fintrin.h
        "-Wno-uninitialized",
        f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
        f'-DCONVNORM_VERSION="{version()}"',
        f'-DCONVNORM_BUILT_WITH_TORCH="{torch.__version__}"',
    ]
    return CppExtension(
        "convnorm._C",
        sources,
        include_dirs=[pybind11.get_include(), str(ROOT / "csrc")],
        extra_compile_args=flags,
        extra_link_args=["-Wl,--as-needed"],
        depends=[str(p.relative_to(ROOT)) for p in [*nvcc.headers(), *(nvcc.sources() if CUDA else [])]],
    )


limit_jobs()
setup(ext_modules=[extension()], cmdclass={"build_ext": Build})
