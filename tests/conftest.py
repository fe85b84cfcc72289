"""What holds for every test: fixed seeds, two threads, and the choice of kernels put back.

CONVNORM_TEST_DEVICE=cuda puts the inputs of all specs there: `scripts/gpu_check.sh` runs tests/test_contract.py so.
"""

import dataclasses
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle workers must not spin

import hypothesis
import pytest
import torch

import convnorm
from tests.specs import all_specs

DEVICE = os.environ.get("CONVNORM_TEST_DEVICE", "cpu")
torch.backends.cudnn.allow_tf32 = False  # no row of ours uses it

# The same examples for the same code; HYPOTHESIS_PROFILE=search draws others, and more of them.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=150)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(autouse=True)
def fixed_state(request):
    """Winograd's rounding errors have a bound of their own, so only tests marked for it let it run."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    isa = convnorm.backends.isa()
    with convnorm.backends.using_winograd(request.node.get_closest_marker("winograd") is not None):
        yield
    convnorm.backends.set_isa(isa)


def pytest_configure(config):
    config.addinivalue_line("markers", "winograd: convolutions may be computed by Winograd's method")
    config.addinivalue_line("markers", "cases(small=False, exact=False, names=None): a choice of cases and specs")


def on_device(spec):
    """The spec with its inputs on DEVICE."""

    def inputs(*args, **kwargs):
        made = spec.inputs(*args, **kwargs)
        return {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in made.items()}

    return spec if DEVICE == "cpu" else dataclasses.replace(spec, inputs=inputs)


def pytest_generate_tests(metafunc):
    """A test that asks for `spec, case` runs on all specs' cases; with `layout`, in each layout."""
    asked = [name for name in ("spec", "case", "layout") if name in metafunc.fixturenames]
    if "case" not in asked:
        return
    marker = metafunc.definition.get_closest_marker("cases")
    wanted = marker.kwargs if marker else {}
    rows = [
        (spec, case, layout)[: len(asked)]
        for spec in map(on_device, all_specs())
        if spec.exact or not wanted.get("exact")
        if spec.name in (wanted.get("names") or [spec.name])
        for case in spec.cases
        if case.small or not wanted.get("small")
        for layout in (case.layouts() if "layout" in asked else [None])
    ]
    metafunc.parametrize(asked, rows, ids=["-".join(map(str, row)) for row in rows])
