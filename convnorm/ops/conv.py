"""Convolution: fakes and autograd for convnorm::conv_forward, conv_by_input and conv_by_weight.

The three are one bilinear form seen from its three sides, so they are closed under differentiation: each one's
backward is the other two, and derivatives of any order need no further kernel.

``padding`` has twice as many entries as there are spatial dimensions: all low sides, then all high sides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._fake import empty, same_kind, wants_channels_last
from ._function import Function, move_batch

_ops = torch.ops.convnorm


def output_size(size, kernel, stride, padding, dilation) -> list[int]:
    """floor((in + low + high - dilation*(kernel-1) - 1) / stride) + 1, per spatial dimension."""
    n = len(size)
    return [
        (size[i] + padding[i] + padding[n + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(n)
    ]


@torch.library.register_fake("convnorm::conv_forward")
def _(input, weight, bias, stride, padding, dilation, groups):
    same_kind("conv_forward", input, weight, bias)
    out = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return empty(input, [input.shape[0], weight.shape[0], *out], wants_channels_last(input, weight))


@torch.library.register_fake("convnorm::conv_by_input")
def _(grad_output, weight, input_size, stride, padding, dilation, groups):
    same_kind("conv_by_input", grad_output, weight)
    return empty(grad_output, input_size, wants_channels_last(grad_output, weight))


@torch.library.register_fake("convnorm::conv_by_weight")
def _(grad_output, input, weight_size, stride, padding, dilation, groups, with_bias):
    same_kind("conv_by_weight", grad_output, input)
    grad_weight = empty(input, weight_size, wants_channels_last(grad_output, input))
    return grad_weight, input.new_empty([weight_size[0] if with_bias else 0])


class Conv(Function):
    """out = input * weight + bias."""

    @staticmethod
    def forward(input, weight, bias, stride, padding, dilation, groups):
        return _ops.conv_forward(input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, weight, bias, *ctx.geometry = inputs
        ctx.save_for_backward(input, weight)
        ctx.save_for_forward(input, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = ConvByInput.call(grad_output, weight, list(input.shape), *ctx.geometry)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            with_bias = ctx.has_bias and ctx.needs_input_grad[2]
            grad_weight, grad_bias = ConvByWeight.call(grad_output, input, list(weight.shape), *ctx.geometry, with_bias)
        wanted = [g if n else None for g, n in zip((grad_weight, grad_bias), ctx.needs_input_grad[1:3], strict=True)]
        return (grad_input, *wanted, *(None,) * 4)

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, weight, bias, stride, padding, dilation, groups):
        size, (di, dw, db, *_) = info.batch_size, in_dims
        if dw is None and db is None:  # only the input is mapped: more images
            x = input.movedim(di, 0)
            out = Conv.call(x.flatten(0, 1), weight, bias, stride, padding, dilation, groups)
            return out.unflatten(0, (size, x.shape[1])), 0
        x, w, b = (move_batch(t, d, size) for t, d in ((input, di), (weight, dw), (bias, db)))
        bias = None if b is None else b.flatten(0, 1)
        out = Conv.call(x.movedim(0, 1).flatten(1, 2), w.flatten(0, 1), bias, stride, padding, dilation, groups * size)
        return out.unflatten(1, (size, w.shape[1])), 1


class _ConvEager(Conv):
    @staticmethod
    def jvp(ctx: Any, d_input, d_weight, d_bias, *_):
        input, weight = ctx.saved_tensors
        terms = []
        if d_input is not None:
            terms.append(Conv.call(d_input, weight, None, *ctx.geometry))
        if d_weight is not None:
            terms.append(Conv.call(input, d_weight, d_bias, *ctx.geometry))
        elif d_bias is not None:
            out = output_size(input.shape[2:], weight.shape[2:], *ctx.geometry[:3])
            terms.append(d_bias.view(1, -1, *(1,) * len(out)).expand(input.shape[0], weight.shape[0], *out))
        return sum(terms[1:], terms[0]) if terms else None


class ConvByInput(Function):
    """The input whose convolution has gradient grad_output: the transposed convolution."""

    @staticmethod
    def forward(grad_output, weight, input_size, stride, padding, dilation, groups):
        return _ops.conv_by_input(grad_output, weight, input_size, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad_output, weight, ctx.input_size, *ctx.geometry = inputs
        ctx.save_for_backward(grad_output, weight)
        ctx.save_for_forward(grad_output, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad_output, weight = ctx.saved_tensors
        grad_grad_output = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_grad_output = Conv.call(grad, weight, None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            grad_weight, _ = ConvByWeight.call(grad_output, grad, list(weight.shape), *ctx.geometry, False)
        return (grad_grad_output, grad_weight, *(None,) * 5)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output, weight, input_size, stride, padding, dilation, groups):
        size, (dg, dw, *_) = info.batch_size, in_dims
        n, c, *spatial = input_size
        if dw is None:
            g = grad_output.movedim(dg, 0).flatten(0, 1)
            out = ConvByInput.call(g, weight, [n * size, c, *spatial], stride, padding, dilation, groups)
            return out.unflatten(0, (size, n)), 0
        g, w = (move_batch(t, d, size) for t, d in ((grad_output, dg), (weight, dw)))
        g, w = g.movedim(0, 1).flatten(1, 2), w.flatten(0, 1)
        out = ConvByInput.call(g, w, [n, c * size, *spatial], stride, padding, dilation, groups * size)
        return out.unflatten(1, (size, c)), 1


class _ConvByInputEager(ConvByInput):
    @staticmethod
    def jvp(ctx: Any, d_grad_output, d_weight, *_):
        grad_output, weight = ctx.saved_tensors
        pairs = [(d_grad_output, weight), (grad_output, d_weight)]
        terms = [ConvByInput.call(*p, ctx.input_size, *ctx.geometry) for p in pairs if all(t is not None for t in p)]
        return sum(terms[1:], terms[0]) if terms else None


class ConvByWeight(Function):
    """(grad_weight, grad_bias) from grad_output and input; grad_bias is empty unless with_bias."""

    @staticmethod
    def forward(grad_output, input, weight_size, stride, padding, dilation, groups, with_bias):
        return _ops.conv_by_weight(grad_output, input, weight_size, stride, padding, dilation, groups, with_bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad_output, input, ctx.weight_size, *ctx.geometry, ctx.with_bias = inputs
        ctx.save_for_backward(grad_output, input)
        ctx.save_for_forward(grad_output, input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_bias: Tensor) -> Any:
        grad_output, input = ctx.saved_tensors
        grad_grad_output = grad_input = None
        if ctx.needs_input_grad[0]:
            bias = grad_bias if ctx.with_bias else None
            grad_grad_output = Conv.call(input, grad, bias, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            grad_input = ConvByInput.call(grad_output, grad, list(input.shape), *ctx.geometry)
        return (grad_grad_output, grad_input, *(None,) * 6)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output, input, weight_size, stride, padding, dilation, groups, with_bias):
        size = info.batch_size
        g, x = (move_batch(t, d, size) for t, d in ((grad_output, in_dims[0]), (input, in_dims[1])))
        k, *rest = weight_size
        gw, gb = ConvByWeight.call(g.movedim(0, 1).flatten(1, 2), x.movedim(0, 1).flatten(1, 2), [k * size, *rest],
                                   stride, padding, dilation, groups * size, with_bias)
        gb = gb.unflatten(0, (size, k)) if with_bias else gb.new_empty(size, 0)
        return (gw.unflatten(0, (size, k)), gb), (0, 0)


class _ConvByWeightEager(ConvByWeight):
    @staticmethod
    def jvp(ctx: Any, d_grad_output, d_input, *_):
        grad_output, input = ctx.saved_tensors
        weight = bias = None
        if d_grad_output is not None:
            weight, bias = ConvByWeight.call(d_grad_output, input, ctx.weight_size, *ctx.geometry, ctx.with_bias)
        if d_input is not None:
            more, no_bias = ConvByWeight.call(grad_output, d_input, ctx.weight_size, *ctx.geometry, False)
            weight = more if weight is None else weight + more
            if bias is None:
                bias = more.new_zeros(ctx.weight_size[0]) if ctx.with_bias else no_bias
        return weight, bias


Conv.eager, ConvByInput.eager, ConvByWeight.eager = _ConvEager, _ConvByInputEager, _ConvByWeightEager
