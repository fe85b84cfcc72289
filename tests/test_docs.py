"""What the documentation site says of the code; tests/test_readme.py runs its examples, `make docs` builds it."""

import doctest
import importlib
import pkgutil
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import convnorm
from convnorm import backends

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ROOMS = sorted(p.name for p in (ROOT / "csrc/ops").iterdir() if p.is_dir())


def stem(kernel):
    """A kernel's name without its tile and instruction set."""
    return re.sub(r"(_\d+x\d+)?_(amx|avx512bf16|avx512|avx2|generic)$", "", kernel)


def lists(page):
    """The first column of each table that begins with kernels: [[kernel, ...], ...]."""
    tables = re.findall(r"^\| kernel \|.*\n\|[ -|]+\n((?:\|.*\n)+)", page.read_text(), re.M)
    return [re.findall(r"^\| `(\w+)`", table, re.M) for table in tables]


@pytest.mark.parametrize("room", ROOMS)
def test_an_op_has_a_page(room):
    assert (DOCS / f"ops/{room}.md").is_file()
    assert f"ops/{room}.md" in (ROOT / "mkdocs.yml").read_text()


def test_pages_list_every_kernel_in_order_of_choice():
    """Of the CPU: docs/cuda.md tells of the others."""
    rows = [row for row in backends.kernels() if row["device"] == "cpu"]
    written = [kernels for room in ROOMS for kernels in lists(DOCS / f"ops/{room}.md")]
    for op in dict.fromkeys(row["op"] for row in rows):
        kernels = list(dict.fromkeys(stem(row["kernel"]) for row in rows if row["op"] == op))
        assert kernels in written, f"no page of docs/ops has the list of {op}: {kernels}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    pages = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r"[\w/-]+\.md", navigation))


def test_files_that_pages_include_exist():
    asked = re.compile(r"^<!-- (?:include|comment): ([^ ]+)(?: # (.*?))? -->$", re.M)
    for page in DOCS.rglob("*.md"):
        for name, heading in asked.findall(page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name} includes {name}"
            assert not heading or f"\n## {heading}\n" in (ROOT / name).read_text(), f"{page.name}: {name} # {heading}"


def test_kernel_headers_are_on_the_page_of_their_op():
    for room in ROOMS:
        text = (DOCS / f"ops/{room}.md").read_text()
        named = re.findall(r"^<!-- comment: (\S+) -->$", text, re.M)
        assert any(name.startswith(f"csrc/ops/{room}/cpu/") for name in named), f"docs/ops/{room}.md shows no kernel"


def test_pages_without_typed_speeds():
    """The build takes them from benchmarks/results; docs/performance.md is the record of what was tried."""
    for page in (DOCS / "ops").glob("*.md"):
        found = re.search(r"\bx\d\.\d\d\b|\b\d+ us\b", page.read_text())
        assert not found, f"{page.name} has a typed number: {found[0]}"


PACKAGES = (convnorm.analysis, convnorm.functional, convnorm.models, convnorm.nn)
NEED_PROCESSES = ["convnorm.nn.sync_batch_norm"]
SINGLE = ("backends", "convert", "explain", "fold", "freeze", "fuse", "testing.compare")
MODULES = [f"convnorm.{name}" for name in SINGLE]
MODULES += [m.name for package in PACKAGES for m in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]


class Printed(doctest.OutputChecker):
    """An example that shows no output may print."""

    def check_output(self, want, got, flags):
        return not want or super().check_output(want, got, flags)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in NEED_PROCESSES])
def test_the_examples_of_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nn = torch.nn
    x = torch.randn(2, 64, 8, 8)
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), head=nn.Conv2d(8, 2, 1)))
    given = {"torch": torch, "convnorm": convnorm, "nn": nn, "x": x, "shortcut": x, "model": model}
    runner = doctest.DocTestRunner(Printed())
    with backends.using_isa(backends.isa()):  # as it was before, whatever an example sets
        for test in doctest.DocTestFinder().find(importlib.import_module(name), extraglobs=given):
            runner.run(test)
    assert not runner.failures
