"""Level 2 for every op: forward and gradients as accurate as torch's, in each dtype and layout."""

import pytest
import torch

from convnorm.testing import assert_accurate
from tests.specs import DTYPES, cast, evaluate


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_as_accurate_as_torch(spec, case, layout, dtype):
    inputs = spec.inputs(case, dtype, layout)
    ours = evaluate(spec.ours, inputs, spec.grads)
    # In float64 torch is the reference; its error there is its float32 error, scaled (see assert_accurate).
    peer = cast(inputs, torch.float32) if dtype == torch.float64 else inputs
    theirs = evaluate(spec.theirs, peer, spec.grads)
    reference = evaluate(spec.theirs, cast(inputs, torch.float64), spec.grads)
    assert ours.keys() == reference.keys()
    for what in ours:
        assert_accurate(ours[what], theirs[what], reference[what], what)
