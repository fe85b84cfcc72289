"""Pooling by recorded indices: fakes and autograd for convnorm::adaptive_max_pool_* and max_unpool_*.

``adaptive_max_pool_backward`` adds values into a plane at their indices, ``max_unpool_backward`` picks them from it:
each is the other's transpose, and so the rest of every derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._fake import empty, wants_channels_last
from ._function import Function, move_batch

_ops = torch.ops.convnorm


@torch.library.register_fake("convnorm::adaptive_max_pool_forward")
def _(input, output_size, return_indices):
    size, channels_last = [*input.shape[:2], *output_size], wants_channels_last(input)
    output = empty(input, size, channels_last)
    if not return_indices:
        return output, input.new_empty([0], dtype=torch.int64)
    return output, empty(input, size, channels_last, torch.int64)


@torch.library.register_fake("convnorm::adaptive_max_pool_backward")
def _(grad_output, indices, input_size, channels_last):
    return empty(grad_output, input_size, channels_last)


@torch.library.register_fake("convnorm::max_unpool_forward")
def _(input, indices, output_size):
    return empty(input, [*input.shape[:2], *output_size], wants_channels_last(input))


@torch.library.register_fake("convnorm::max_unpool_backward")
def _(grad_output, indices):
    return empty(grad_output, indices.shape, wants_channels_last(indices))


class AdaptiveMaxPool(Function):
    """(output, indices) of input."""

    @staticmethod
    def forward(input, output_size, return_indices):
        return _ops.adaptive_max_pool_forward.default(input, output_size, return_indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, indices = inputs[0], output[1]
        ctx.input_size, ctx.channels_last = input.shape, wants_channels_last(input)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _grad_indices: None) -> Any:
        if grad_output is None:
            return None, None, None
        (indices,) = ctx.saved_tensors
        return MaxPoolSpread.call(grad_output, indices, ctx.input_size, ctx.channels_last), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, output_size, return_indices):
        x = input.movedim(in_dims[0], 0)
        output, indices = AdaptiveMaxPool.call(x.flatten(0, 1), output_size, return_indices)
        if not return_indices:
            return (output.unflatten(0, x.shape[:2]), indices), (0, None)
        return (output.unflatten(0, x.shape[:2]), indices.unflatten(0, x.shape[:2])), (0, 0)


class _AdaptiveMaxPoolEager(AdaptiveMaxPool):
    @staticmethod
    def jvp(ctx: Any, d_input, *_):
        (indices,) = ctx.saved_tensors
        return MaxPoolPick.call(d_input, indices), None


class MaxUnpool(Function):
    """The values at their indices in a plane of zeros; of several at one index, the last."""

    @staticmethod
    def forward(input, indices, output_size):
        return _ops.max_unpool_forward.default(input, indices, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _input, indices, ctx.output_size = inputs
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return MaxPoolPick.call(grad_output, indices), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, input, indices, output_size):
        x, i = (move_batch(t, d, info.batch_size) for t, d in zip((input, indices), in_dims[:2], strict=True))
        return MaxUnpool.call(x.flatten(0, 1), i.flatten(0, 1), output_size).unflatten(0, x.shape[:2]), 0


class _MaxUnpoolEager(MaxUnpool):
    @staticmethod
    def jvp(ctx: Any, d_input, *_):
        (indices,) = ctx.saved_tensors
        return MaxUnpool.call(d_input, indices, ctx.output_size)


class MaxPoolSpread(Function):
    """A plane of the sums of the values at each index."""

    @staticmethod
    def forward(values, indices, size, channels_last):
        return _ops.adaptive_max_pool_backward.default(values, indices, size, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _values, indices, ctx.size, ctx.channels_last = inputs
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return MaxPoolPick.call(grad, indices), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, values, indices, size, channels_last):
        v, i = (move_batch(t, d, info.batch_size) for t, d in zip((values, indices), in_dims[:2], strict=True))
        n, *rest = size
        out = MaxPoolSpread.call(v.flatten(0, 1), i.flatten(0, 1), [info.batch_size * n, *rest], channels_last)
        return out.unflatten(0, (info.batch_size, n)), 0


class _MaxPoolSpreadEager(MaxPoolSpread):
    @staticmethod
    def jvp(ctx: Any, d_values, *_):
        (indices,) = ctx.saved_tensors
        return MaxPoolSpread.call(d_values, indices, ctx.size, ctx.channels_last)


class MaxPoolPick(Function):
    """The plane's values at the indices."""

    @staticmethod
    def forward(plane, indices):
        return _ops.max_unpool_backward.default(plane, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        plane, indices = inputs
        ctx.size, ctx.channels_last = plane.shape, wants_channels_last(plane)
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return MaxPoolSpread.call(grad, indices, ctx.size, ctx.channels_last), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, plane, indices):
        x, i = (move_batch(t, d, info.batch_size) for t, d in zip((plane, indices), in_dims[:2], strict=True))
        return MaxPoolPick.call(x.flatten(0, 1), i.flatten(0, 1)).unflatten(0, x.shape[:2]), 0


class _MaxPoolPickEager(MaxPoolPick):
    @staticmethod
    def jvp(ctx: Any, d_plane, *_):
        (indices,) = ctx.saved_tensors
        return MaxPoolPick.call(d_plane, indices)


AdaptiveMaxPool.eager, MaxUnpool.eager = _AdaptiveMaxPoolEager, _MaxUnpoolEager
MaxPoolSpread.eager, MaxPoolPick.eager = _MaxPoolSpreadEager, _MaxPoolPickEager
