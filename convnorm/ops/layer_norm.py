"""Layer norm: fakes and autograd for convnorm::layer_norm_forward and _backward.

``stats`` is float64 ``(2, rows)``: mean and biased variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _sample_norm
from ._function import Function, move_batch
from ._norm_arithmetic import Terms, View, gradients

_ops = torch.ops.convnorm


@torch.library.register_fake("convnorm::layer_norm_forward")
def _(input, normalized_shape, weight, bias, eps):
    rows = math.prod(input.shape[: input.dim() - len(normalized_shape)])
    return input.new_empty(input.shape), input.new_empty([2, rows], dtype=torch.float64)


@torch.library.register_fake("convnorm::layer_norm_backward")
def _(grad_output, input, normalized_shape, weight, bias, stats, eps, want_input, want_affine):
    grad_input = input.new_empty(input.shape if want_input else [0])
    return _sample_norm.fake_gradients(grad_input, input, weight, bias, normalized_shape if want_affine else [0])


def _terms(input: Tensor, weight: Tensor | None, stats: Tensor, shape: Sequence[int], eps: float) -> Terms:
    size = math.prod(shape)
    view = View(full=[stats.shape[1], size], params=[1, size], over=[1], batch=[0])
    return Terms(view, input, weight, stats, eps)


class LayerNormBackward(Function):
    """(grad_input, grad_weight, grad_bias); the ones that are not wanted are empty."""

    @staticmethod
    def forward(grad_output, input, weight, bias, stats, shape, eps, want_input, want_affine):
        wants = want_input, want_affine
        return _ops.layer_norm_backward.default(grad_output, input, shape, weight, bias, stats, eps, *wants)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _sample_norm.save_backward(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, to_input: Tensor, to_weight: Tensor, to_bias: Tensor) -> Any:
        return _sample_norm.gradients_of_backward(ctx, _terms, to_input, to_weight, to_bias)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output, input, weight, bias, stats, shape, eps, want_input, want_affine):
        """Each mapped sample has parameters' gradients of its own: those sums are torch's."""
        tensors = (grad_output, input, weight, bias, stats)
        g, x, w, b, s = (move_batch(t, d, info.batch_size) for t, d in zip(tensors, in_dims[:5], strict=True))
        assert g is not None and x is not None and s is not None
        size = math.prod(shape)
        view = View([info.batch_size, s.shape[2], size], [info.batch_size, 1, size], over=[2], batch=[1])
        terms = Terms(view, x, w, s.transpose(0, 1), eps)
        like = x.new_empty(info.batch_size, *shape)
        results = _sample_norm.shaped(gradients(terms, g), (x, like if w is None else w, like if b is None else b))
        empty = x.new_empty(info.batch_size, 0)
        wants = (want_input, want_affine, want_affine)
        return tuple(t if want else empty for t, want in zip(results, wants, strict=True)), (0, 0, 0)


class _LayerNormBackwardEager(LayerNormBackward):
    @staticmethod
    def jvp(ctx: Any, d_grad, d_input, d_weight, *_):
        return _sample_norm.tangents_of_backward(ctx, _terms, ctx.over, d_grad, d_input, d_weight)


class LayerNorm(Function):
    """(out, stats): out = weight xhat + bias over the trailing dimensions ``shape``."""

    @staticmethod
    def forward(input, shape, weight, bias, eps):
        return _ops.layer_norm_forward.default(input, shape, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _sample_norm.save(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: Any) -> Any:
        return _sample_norm.gradients(ctx, LayerNormBackward, grad_output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, shape, weight, bias, eps):
        x = move_batch(input, in_dims[0], info.batch_size)
        assert x is not None
        mapped = in_dims[2] is not None or in_dims[3] is not None
        out, stats = LayerNorm.call(x, shape, *((None, None) if mapped else (weight, bias)), eps)
        if mapped:  # each sample has parameters of its own
            lead = [info.batch_size, *(1,) * (x.dim() - 1 - len(shape)), *shape]
            w, b = (move_batch(t, d, info.batch_size) for t, d in ((weight, in_dims[2]), (bias, in_dims[3])))
            wide = out.to(torch.promote_types(out.dtype, torch.float32))
            wide = wide if w is None else wide * w.reshape(lead)
            out = (wide if b is None else wide + b.reshape(lead)).to(out.dtype)
        return (out, stats.unflatten(1, (info.batch_size, stats.shape[1] // info.batch_size))), (0, 1)


class _LayerNormEager(LayerNorm):
    @staticmethod
    def jvp(ctx: Any, d_input, _, d_weight, d_bias, *__):
        return _sample_norm.tangents(ctx, _terms, d_input, d_weight, d_bias)


LayerNormBackward.eager, LayerNorm.eager = _LayerNormBackwardEager, _LayerNormEager
