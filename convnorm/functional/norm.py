"""Normalization under torch.nn.functional's names."""

from __future__ import annotations

from torch import Tensor

from .._args import require_float
from ..ops.batch_norm import BatchNormEval, BatchNormTrain, update_running


def batch_norm(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
               weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
               momentum: float = 0.1, eps: float = 1e-05) -> Tensor:
    """Batch normalization: each channel to zero mean and unit variance, then ``weight * xhat + bias``.

    Args:
        input: ``(N, C)``, ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``; float32, float64,
            bfloat16 or float16; any strides. channels_last input gives channels_last output.
        running_mean, running_var: ``(C,)``, both or neither; updated in training, used in evaluation.
        weight, bias: ``(C,)`` or None; of input's dtype, or float32 for 16-bit input.
        training: use the statistics of the batch (biased variance); else the running ones.
        momentum: ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance.
        eps: added to the variance; > 0 in training.

    Raises:
        ValueError: one value per channel in training; eps out of range; one running statistic alone.
        RuntimeError: sizes, dtypes or devices that do not fit, with the rule they break.
        NotImplementedError: integer or complex input.

    The mean is carried in double: the error stays near one float32 rounding for mean/std up to 1e6.

    Source: :func:`torch.nn.functional.batch_norm`; Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.

    Example:
        >>> y = convnorm.functional.batch_norm(torch.randn(8, 3, 4, 4), None, None, training=True)
    """
    return batch_norm_act(input, running_mean, running_var, weight, bias, training, momentum, eps, act=None)


def batch_norm_act(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
                   weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
                   momentum: float = 0.1, eps: float = 1e-05, *, act: str | None = "relu",
                   residual: Tensor | None = None) -> Tensor:
    """``act(batch_norm(input) + residual)`` in one pass; arguments and errors as :func:`batch_norm`.

    Args:
        act: ``"relu"`` or None.
        residual: of input's shape and dtype, or None.

    For the backward only ``input`` is kept (and with a residual the output): the relu mask is recomputed.

    Example:
        >>> y = convnorm.functional.batch_norm_act(x, None, None, training=True, residual=shortcut)
    """
    relu = check_batch_norm(input, running_mean, running_var, training, act)
    if not training:
        return BatchNormEval.call(input, weight, bias, residual, running_mean, running_var, eps, relu)
    out, stats = BatchNormTrain.call(input, weight, bias, residual, eps, relu)
    if running_mean is not None:
        update_running(running_mean, running_var, stats, input, momentum)
    return out


def check_batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool, act: str | None
) -> bool:
    """What is checked before the op; tells whether relu is asked for."""
    require_float("batch_norm", "input", input)
    if act not in ("relu", None):
        raise ValueError(f"batch_norm_act: act {act!r} must be 'relu' or None")
    if not training and (running_mean is None or running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"batch_norm: {missing} must be defined in evaluation mode")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    return act == "relu"
