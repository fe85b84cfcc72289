"""One op is five places: csrc room, autograd, functional, modules and spec. Names the one that is missing."""

import re
from pathlib import Path

import pytest

import convnorm

ROOT = Path(__file__).resolve().parent.parent
ROOMS = sorted(p.name for p in (ROOT / "csrc/ops").iterdir() if p.is_dir())
PAGES = {  # a room's names on the public pages, where they are more than its stem
    "conv": (
        [f"{op}{n}d{end}" for op, end in (("conv", ""), ("conv", "_act"), ("conv_transpose", "")) for n in (1, 2, 3)],
        [f"{kind}{n}d" for kind in ("Conv", "ConvAct", "ConvTranspose") for n in (1, 2, 3)],
    ),
    "max_pool": (
        [f"{op}{n}d" for op in ("max_pool", "adaptive_max_pool", "max_unpool") for n in (1, 2, 3)],
        [f"{kind}{n}d" for kind in ("MaxPool", "AdaptiveMaxPool", "MaxUnpool") for n in (1, 2, 3)],
    ),
    "avg_pool": (
        [f"{op}{n}d" for op in ("avg_pool", "adaptive_avg_pool") for n in (1, 2, 3)],
        [f"{kind}{n}d" for kind in ("AvgPool", "AdaptiveAvgPool") for n in (1, 2, 3)],
    ),
    "batch_norm_max_pool": (["batch_norm_act_max_pool"], [f"BatchNormActMaxPool{n}d" for n in (1, 2, 3)]),
    "batch_norm": (["batch_norm"], ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]),
    "group_norm": (
        ["group_norm", "instance_norm"],
        ["GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"],
    ),
}


HOSTS = {  # host files of a room beside csrc/ops/<op>/<op>.cpp; a header of their name is theirs too
    "batch_norm": ["batch_norm_host", "batch_norm_split"],
    "conv": ["conv_arguments"],
    "max_pool": ["adaptive_max_pool", "max_pool_host", "max_unpool"],
}


def camel(stem):
    return "".join(part.capitalize() for part in stem.split("_"))


@pytest.mark.parametrize("op", ROOMS)
def test_an_op_has_its_five_places(op):
    functionals, modules = PAGES.get(op, ([op], [camel(op)]))
    missing = [
        str(path)
        for path in (
            f"csrc/ops/{op}/{op}.h",
            f"csrc/ops/{op}/{op}.cpp",
            f"convnorm/ops/{op}.py",
            f"tests/specs/{op}.py",
        )
        if not (ROOT / path).is_file()
    ]
    missing += [f"convnorm.functional.{name}" for name in functionals if name not in convnorm.functional.__all__]
    missing += [f"convnorm.nn.{name}" for name in modules if name not in convnorm.nn.__all__]
    assert not missing, f"op {op} lacks: {', '.join(missing)}"


def test_every_autograd_file_and_spec_has_a_room():
    for folder in ("convnorm/ops", "tests/specs"):
        stems = {p.stem for p in (ROOT / folder).glob("*.py") if not p.stem.startswith("_")}
        assert stems <= set(ROOMS), f"{folder} has files without a room in csrc/ops: {sorted(stems - set(ROOMS))}"


def test_kernels_know_nothing_of_torch():
    host = {ROOT / f"csrc/ops/{op}/{stem}.cpp" for op in ROOMS for stem in (op, *HOSTS.get(op, []))}
    host |= {ROOT / f"csrc/ops/{op}/{stem}.h" for op, stems in HOSTS.items() for stem in stems}
    files = [p for folder in ("ops", "cpu", "cuda") for p in (ROOT / "csrc" / folder).rglob("*.*") if p not in host]
    guilty = [
        str(p.relative_to(ROOT)) for p in files if re.search(r'#include [<"](torch/|common/tensor.h)', p.read_text())
    ]
    assert not guilty, f"only host files (csrc/ops/<op>/<op>.cpp and HOSTS) may include torch: {guilty}"


def budgets():
    """(files, most lines) of design: beyond them a file is split by method."""
    yield from ((p, 250) for p in (ROOT / "csrc").rglob("*.cpp"))
    yield from ((p, 400) for end in ("*.h", "*.cu", "*.cuh") for p in (ROOT / "csrc").rglob(end))
    yield from ((p, 200) for p in (ROOT / "convnorm").rglob("*.py"))


def test_files_keep_to_their_budgets():
    over = [f"{p.relative_to(ROOT)}: {n} > {most}" for p, most in budgets() if (n := len(p.open().readlines())) > most]
    assert not over, f"split by method: {over}"
