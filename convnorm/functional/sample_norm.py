"""Normalization with statistics of each sample, under torch.nn.functional's names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._args import require_float
from ..ops.layer_norm import LayerNorm


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-05,
) -> Tensor:
    """Layer normalization: the trailing dimensions to zero mean and unit variance, then ``weight * xhat + bias``.

    Args:
        input: ``(*, *normalized_shape)``; float32, float64, bfloat16 or float16; any strides (others than
            contiguous are copied first). The output is contiguous, as torch's.
        normalized_shape: sizes of the trailing dimensions that share one mean and variance.
        weight, bias: of shape normalized_shape or None; of input's dtype, or float32 for 16-bit input.
        eps: added to the (biased) variance.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    The mean is carried in double: the error stays near one float32 rounding for mean/std up to 1e6.

    Source: :func:`torch.nn.functional.layer_norm`; Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450.

    Example:
        >>> y = convnorm.functional.layer_norm(torch.randn(8, 16, 96), (96,))
    """
    require_float("layer_norm", "input", input)
    return LayerNorm.call(input, list(normalized_shape), weight, bias, eps)[0]
