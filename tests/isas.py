"""The instruction sets whose kernels this build has and this processor runs, the narrowest first."""

import pytest

from convnorm import _C

_NAMES = ["generic", "avx2", "avx512"]
ISAS = [isa for isa in _NAMES[: _NAMES.index(_C.supported_isa()) + 1] if isa in _C.build_info()["isas_built"]]
isas = pytest.mark.parametrize("isa", ISAS)
