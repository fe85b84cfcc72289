"""The instruction sets whose kernels this build has and this processor runs, the narrowest first."""

import pytest

from convnorm import _C

_NAMES = ["generic", "avx2", "avx512", "avx512bf16", "amx"]
_RUN = [isa for isa in _NAMES[: _NAMES.index(_C.supported_isa()) + 1] if isa in _C.build_info()["isas_built"]]
BF16 = {"avx512bf16", "amx"}.intersection(_RUN)  # have kernels of their own for convolutions of bfloat16 only
ISAS = [isa for isa in _RUN if isa not in BF16]
isas = pytest.mark.parametrize("isa", ISAS)
