"""Level 2 for every op: forward and gradients as accurate as torch's, in each dtype and layout."""

import pytest
import torch

from tests.specs import DTYPES, compare


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_as_accurate_as_torch(spec, case, layout, dtype):
    if spec.exact and dtype == torch.float64:
        return  # torch is no reference for itself there; test_exact proves that the sums are kept in float64
    compare(spec, spec.inputs(case, dtype, layout), dtype)
