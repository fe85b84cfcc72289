"""Normalization with statistics of each sample, under torch.nn.functional's names."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .._args import autocast_float32, known_true, require_float
from ..ops.batch_norm import BatchNormEval
from ..ops.group_norm import GroupNorm, update_running
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
    input, weight, bias = autocast_float32("cuda", input, weight, bias)
    return LayerNorm.call(input, list(normalized_shape), weight, bias, eps)[0]


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-05
) -> Tensor:
    """Group normalization: each group of an image's channels to zero mean and unit variance, then affine.

    Args:
        input: ``(N, C, *)``; float32, float64, bfloat16 or float16. Contiguous and channels_last input is
            read as it is and gives output of its layout; other strides are copied first.
        num_groups: groups that the channels are split into; must divide C.
        weight, bias: ``(C,)`` or None; of input's dtype, or float32 for 16-bit input.
        eps: added to the (biased) variance.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit, with the rule they break.
        ValueError: one value per group in a batch of one.
        NotImplementedError: integer or complex input.

    The mean is carried in double: the error stays near one float32 rounding for mean/std up to 1e6, in both layouts.

    Source: :func:`torch.nn.functional.group_norm`; Wu and He 2018, https://arxiv.org/abs/1803.08494.

    Example:
        >>> y = convnorm.functional.group_norm(torch.randn(8, 32, 14, 14), 4)
    """
    require_float("group_norm", "input", input)
    input, weight, bias = autocast_float32("cuda", input, weight, bias)
    if input.dim() >= 2 and num_groups > 0 and input.shape[1] % num_groups == 0:
        size = [input.shape[0] * input.shape[1] // num_groups, num_groups, *input.shape[2:]]
        if known_true(size[0] * math.prod(size[2:]) == 1):
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
    return GroupNorm.call(input, num_groups, weight, bias, eps)[0]


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-05,
) -> Tensor:
    """Instance normalization: each channel of each image to zero mean and unit variance, then affine.

    Args:
        input: ``(N, C, *)`` with at least one spatial dimension; float32, float64, bfloat16 or float16. The
            output has input's layout (torch's is always contiguous).
        running_mean, running_var: ``(C,)``, both or neither. With use_input_stats they are updated with the mean
            over the images, else they are what is normalised with.
        weight, bias: ``(C,)`` or None; of input's dtype, or float32 for 16-bit input.
        use_input_stats: use the statistics of each image (biased variance).
        momentum: ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance.
        eps: added to the variance.

    Raises:
        ValueError: one spatial element with use_input_stats; one running statistic alone.
        RuntimeError: sizes, dtypes or devices that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    Source: :func:`torch.nn.functional.instance_norm`; Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022.

    Example:
        >>> y = convnorm.functional.instance_norm(torch.randn(8, 3, 16, 16))
    """
    require_float("instance_norm", "input", input)
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise RuntimeError("Expected running_mean and running_var to be defined when use_input_stats is false")
        return BatchNormEval.call(input, weight, bias, None, running_mean, running_var, eps, False)
    count = math.prod(input.shape[2:])
    if known_true(count == 1):
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {input.size()}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    channels = input.shape[1]
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None and running.numel() != channels:
            raise RuntimeError(f"instance_norm: {name} should contain {channels} elements not {running.numel()}")
    out, stats = GroupNorm.call(input, channels, weight, bias, eps)
    if running_mean is not None and running_var is not None and input.numel():
        update_running(running_mean, stats[0], 1.0, momentum)
        update_running(running_var, stats[1], count / (count - 1), momentum)
    return out
