"""Average pooling, plain and adaptive: fakes and autograd for convnorm::avg_pool_* and adaptive_avg_pool_*.

Forward and backward are linear, and each is the other's transpose: derivatives of any order are these two ops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._fake import empty, strides_want_channels_last, wants_channels_last
from ._function import Function
from .max_pool import output_size, parts

_ops = torch.ops.convnorm


@torch.library.register_fake("convnorm::avg_pool_forward")
def _(input, window, ceil_mode, count_include_pad, divisor_override):
    kernel, stride, padding = parts(window, 3)
    spatial = output_size(input.shape[2:], kernel, stride, padding, [1] * len(kernel), ceil_mode)
    return empty(input, [*input.shape[:2], *spatial], wants_channels_last(input))


@torch.library.register_fake("convnorm::avg_pool_backward")
def _(grad_output, input_size, window, ceil_mode, count_include_pad, divisor_override, channels_last):
    return empty(grad_output, input_size, channels_last)


@torch.library.register_fake("convnorm::adaptive_avg_pool_forward")
def _(input, output_size):
    return empty(input, [*input.shape[:2], *output_size], wants_channels_last(input))


@torch.library.register_fake("convnorm::adaptive_avg_pool_backward")
def _(grad_output, input_size, channels_last):
    return empty(grad_output, input_size, channels_last)


class AvgPool(Function):
    """The means of plain windows. ``geometry`` is what follows input in the op's schema; its first, ``window``, is one
    list, as every list of a call costs 1 us: kernel_size, stride and padding of all dimensions."""

    @staticmethod
    def forward(input, geometry):
        return _ops.avg_pool_forward.default(input, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, ctx.geometry = inputs
        ctx.input_size, ctx.input_strides = input.shape, input.stride()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        channels_last = strides_want_channels_last(ctx.input_size, ctx.input_strides)
        return AvgPoolBackward.call(grad_output, ctx.input_size, ctx.geometry, channels_last), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, geometry):
        x = input.movedim(in_dims[0], 0)
        return AvgPool.call(x.flatten(0, 1), geometry).unflatten(0, x.shape[:2]), 0


class _AvgPoolEager(AvgPool):
    @staticmethod
    def jvp(ctx: Any, d_input, *_):
        return AvgPool.call(d_input, ctx.geometry)


class AvgPoolBackward(Function):
    """Each gradient's share to all positions of its window."""

    @staticmethod
    def forward(grad_output, input_size, geometry, channels_last):
        return _ops.avg_pool_backward.default(grad_output, input_size, *geometry, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _grad_output, ctx.input_size, ctx.geometry, ctx.channels_last = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return AvgPool.call(grad, ctx.geometry), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output, input_size, geometry, channels_last):
        g, (n, *sizes) = grad_output.movedim(in_dims[0], 0), input_size
        out = AvgPoolBackward.call(g.flatten(0, 1), [info.batch_size * n, *sizes], geometry, channels_last)
        return out.unflatten(0, (info.batch_size, n)), 0


class _AvgPoolBackwardEager(AvgPoolBackward):
    @staticmethod
    def jvp(ctx: Any, d_grad_output, *_):
        return AvgPoolBackward.call(d_grad_output, ctx.input_size, ctx.geometry, ctx.channels_last)


class AdaptiveAvgPool(Function):
    """The means of windows that share the input out among ``output_size`` outputs."""

    @staticmethod
    def forward(input, output_size):
        return _ops.adaptive_avg_pool_forward.default(input, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, ctx.output_size = inputs
        ctx.input_size, ctx.input_strides = input.shape, input.stride()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        channels_last = strides_want_channels_last(ctx.input_size, ctx.input_strides)
        return AdaptiveAvgPoolBackward.call(grad_output, ctx.input_size, channels_last), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, output_size):
        x = input.movedim(in_dims[0], 0)
        return AdaptiveAvgPool.call(x.flatten(0, 1), output_size).unflatten(0, x.shape[:2]), 0


class _AdaptiveAvgPoolEager(AdaptiveAvgPool):
    @staticmethod
    def jvp(ctx: Any, d_input, *_):
        return AdaptiveAvgPool.call(d_input, ctx.output_size)


class AdaptiveAvgPoolBackward(Function):
    """Each gradient's share to all positions of its window."""

    @staticmethod
    def forward(grad_output, input_size, channels_last):
        return _ops.adaptive_avg_pool_backward.default(grad_output, input_size, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad_output, ctx.input_size, ctx.channels_last = inputs
        ctx.output_size = list(grad_output.shape[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return AdaptiveAvgPool.call(grad, ctx.output_size), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad_output, input_size, channels_last):
        g, (n, *sizes) = grad_output.movedim(in_dims[0], 0), input_size
        out = AdaptiveAvgPoolBackward.call(g.flatten(0, 1), [info.batch_size * n, *sizes], channels_last)
        return out.unflatten(0, (info.batch_size, n)), 0


class _AdaptiveAvgPoolBackwardEager(AdaptiveAvgPoolBackward):
    @staticmethod
    def jvp(ctx: Any, d_grad_output, *_):
        return AdaptiveAvgPoolBackward.call(d_grad_output, ctx.input_size, ctx.channels_last)


AvgPool.eager, AvgPoolBackward.eager = _AvgPoolEager, _AvgPoolBackwardEager
AdaptiveAvgPool.eager, AdaptiveAvgPoolBackward.eager = _AdaptiveAvgPoolEager, _AdaptiveAvgPoolBackwardEager
