"""Level 1: on integer-valued data every sum is exact in any order, so results must equal torch's."""

import pytest
import torch

from convnorm.testing import assert_same
from tests.specs import DTYPES, cast, evaluate


@pytest.mark.cases(exact=True)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_equal_to_torch(spec, case, layout, dtype):
    inputs = spec.inputs(case, dtype, layout, kind="integers")
    ours = evaluate(spec.ours, inputs, spec.grads, kind="integers")
    # 16-bit: the exact result rounded once, which torch's own kernels do not promise.
    exact_dtype = dtype if dtype.itemsize >= 4 else torch.float64
    theirs = evaluate(spec.theirs, cast(inputs, exact_dtype), spec.grads, kind="integers")
    assert ours.keys() == theirs.keys()
    for what, expected in cast(theirs, dtype).items():
        assert_same(ours[what], expected, what)
