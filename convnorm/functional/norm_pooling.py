"""Batch norm and max pooling in one pass: a chain that torch spells as three layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops._function import derivative_wanted
from ..ops.batch_norm import update_running
from ..ops.batch_norm_max_pool import BatchNormMaxPoolEval, BatchNormMaxPoolTrain
from ..ops.max_pool import NOTHING, OFFSETS
from .max_pooling import max_pool1d, max_pool2d, max_pool3d, max_pool_window
from .norm import batch_norm_act, check_batch_norm

_Size = int | Sequence[int]


def batch_norm_act_max_pool(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
                            weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
                            momentum: float = 0.1, eps: float = 1e-05, *, kernel_size: _Size,
                            stride: _Size | None = None, padding: _Size = 0, dilation: _Size = 1,
                            ceil_mode: bool = False, act: str | None = "relu") -> Tensor:
    """``max_pool(act(batch_norm(input)))`` in one pass, with the values and gradients of the two functions.

    Args:
        input: ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``; float32, float64, bfloat16 or float16; any
            strides. channels_last input gives channels_last output.
        running_mean, running_var, weight, bias, training, momentum, eps: as :func:`batch_norm`.
        kernel_size, stride, padding, dilation, ceil_mode: as :func:`max_pool2d`.
        act: ``"relu"`` or None.

    For the backward ``input`` is kept, and one byte per output (4 bytes when the window has more than 256 positions).
    What is normalised is pooled while it is in cache, and never written to memory. Where that is not possible, the two
    functions are called: on CUDA, in an exported program, and for 16 bits of 3d that autocast would have pooled as
    float32.

    Raises:
        ValueError, RuntimeError, NotImplementedError: as the two functions. Nothing is computed or updated then.

    Example:
        >>> y = convnorm.functional.batch_norm_act_max_pool(x, None, None, training=True, kernel_size=3, stride=2)
    """
    op, n = "batch_norm_act_max_pool", input.dim() - 2
    relu = check_batch_norm(input, running_mean, running_var, training, act)
    if not 1 <= n <= 3:
        size = list(input.shape)
        raise RuntimeError(f"{op}: got input of size {size}, must be (n, c) and 1 to 3 spatial dimensions")
    window = max_pool_window(f"{op}{n}d", n, kernel_size, stride, padding, dilation)
    if _apart(input, n):
        y = batch_norm_act(input, running_mean, running_var, weight, bias, training, momentum, eps, act=act)
        pool = (max_pool1d, max_pool2d, max_pool3d)[n - 1]
        out = pool(y, kernel_size, stride, padding, dilation, ceil_mode)
        assert isinstance(out, Tensor)
        return out
    wanted = any(t is not None and derivative_wanted(t) for t in (input, weight, bias))
    settings = eps, relu, window, bool(ceil_mode), OFFSETS if wanted else NOTHING
    kind = BatchNormMaxPoolTrain if training else BatchNormMaxPoolEval
    call: Callable[..., tuple[Tensor, ...]] = kind.call if wanted else kind.forward
    if not training:
        return call(input, weight, bias, running_mean, running_var, *settings)[0]
    out, _, stats = call(input, weight, bias, *settings)
    if running_mean is not None:
        update_running(running_mean, running_var, stats, input, momentum)
    return out


def _apart(input: Tensor, n: int) -> bool:
    """Whether the two ops are called one after the other."""
    if input.is_cuda or torch.compiler.is_exporting():
        return True
    return n == 3 and input.device.type == "cpu" and input.dtype.itemsize == 2 and torch.is_autocast_enabled("cpu")
