"""The receptive field of a layer, by its formula and by what gradients reach."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..convert import revert
from ..nn.norm_pooling import _BatchNormActMaxPool
from .layers import evaluating, sizes_of
from .receptive import Field, ntuple
from .summary import summary


def receptive_field(model: nn.Module, input_size: Sequence[int], layer: str | None = None) -> Field:
    """What one position of a layer's output sees of the input, by the formula.

    A window of K positions (dilated: D (K - 1) + 1) and stride S makes of a field f and a jump j the field
    ``f + (K - 1) j`` and the jump ``j S``; along L layers of K x K at stride 1 that is ``1 + L (K - 1)``. Borders do
    not count: the field may be larger than the input.

    Args:
        model: any module.
        input_size: one sample without the batch dimension, such as ``(3, 224, 224)``.
        layer: a dotted name; without it the last layer that runs.

    Returns:
        A :class:`Field`: ``field`` and ``jump`` (the distance of neighbouring outputs) in pixels, per dimension.

    Raises:
        ValueError: no such layer ran, or its receptive field is not known (it resizes the map, or has none).

    Example:
        >>> convnorm.analysis.receptive_field(convnorm.models.LeNet5(), (1, 28, 28), "pool2").field
        (16, 16)
    """
    rows = [row for row in summary(model, input_size).rows[1:] if layer in (None, row.name)]
    if not rows:
        raise ValueError(f"receptive_field: layer {layer!r} must be a layer that runs: see summary(model, input_size)")
    if rows[-1].field is None:
        raise ValueError(f"receptive_field: the field of layer {rows[-1].name!r} ({rows[-1].kind}) is not known")
    return rows[-1].field


def _mean_pool(n: int) -> Callable[..., Tensor]:
    """The mean over the windows of a max pooling, so that gradients reach all of a window."""

    def pool(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
             ceil_mode: bool = False, return_indices: bool = False) -> Any:
        kernel, channels = ntuple(kernel_size, n), input.shape[1]
        step = ntuple(stride or kernel_size, n)
        if ceil_mode:  # more zeros at the high sides, for the windows that ceil_mode adds
            input = F.pad(input, [v for s in reversed(step) for v in (0, s - 1)])
        ones = input.new_full((channels, 1, *kernel), 1 / torch.Size(kernel).numel())
        out = getattr(F, f"conv{n}d")(input, ones, None, step, padding, dilation, channels)
        return (out, torch.zeros_like(out, dtype=torch.long)) if return_indices else out

    return pool


def _unchanged(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input


_PASSING: dict[Any, Callable[..., Any]] = dict.fromkeys(
    (F.relu, torch.relu, torch.relu_, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.dropout,
     F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm), _unchanged)  # fmt: skip
for _n, _names in ((n, (f"max_pool{n}d", f"max_pool{n}d_with_indices")) for n in (1, 2, 3)):
    _PASSING |= {getattr(F, name): _mean_pool(_n) for name in _names}
    _PASSING[getattr(torch, _names[0])] = _mean_pool(_n)


class _Linear(TorchFunctionMode):
    """Operations that would block a gradient or look at the whole map, replaced by ones that pass gradients on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _PASSING.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def _output_of(model: nn.Module, layer: str | None, found: list[Tensor]) -> Iterator[None]:
    named = dict(model.named_modules())
    if layer is not None and layer not in named:
        raise ValueError(f"receptive_field_by_gradient: layer {layer!r} must be the name of a module of the model")
    keep = lambda module, args, out: found.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
    handle = named[layer or ""].register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def receptive_field_by_gradient(model: nn.Module, input_size: Sequence[int],
                                layer: str | None = None) -> tuple[int, ...]:
    """The extent of the input that the central output position of a layer has a gradient to, measured.

    Runs a copy of the model in float64 whose weights are all positive, with max pooling replaced by the mean of the
    same windows, and norms and activations by the identity, so that no gradient is zero by chance. What is left are
    the connections. Channels are added up.

    Args:
        model, input_size, layer: as of :func:`receptive_field`; ``layer`` may be any module.

    Returns:
        Pixels per dimension: the formula's field, as far as it lies within the input.

    Raises:
        ValueError: no such module, it did not run, or its output has no spatial dimensions.

    Example:
        >>> convnorm.analysis.receptive_field_by_gradient(convnorm.models.LeNet5(), (1, 28, 28), "pool2")
        (16, 16)
    """
    sizes = sizes_of("receptive_field_by_gradient", input_size)
    plain = revert(copy.deepcopy(model)).double()
    for m in plain.modules():
        if isinstance(m, _BatchNormActMaxPool):  # its norm and activation pass as others do
            m.forward = revert(m.pool()).forward
    with torch.no_grad():
        for p in plain.parameters():
            p.fill_(1 / max(p[0].numel() if p.dim() > 1 else 1, 1))
    x = torch.ones((1, *sizes[0]), dtype=torch.float64, requires_grad=True)
    found: list[Tensor] = []
    with evaluating(plain), _output_of(plain, layer, found), _Linear():
        plain(x)
    if not found or x.dim() < 3:
        raise ValueError(f"receptive_field_by_gradient: layer {layer!r} must run on an input with spatial dimensions")
    out = found[-1]
    centre = out[0]
    for s in out.shape[2:]:
        centre = centre.select(1, s // 2)
    (gradient,) = torch.autograd.grad(centre.sum(), x)
    reached = gradient[0].sum(0).nonzero()
    if not len(reached):
        return (0,) * (x.dim() - 2)
    return tuple((reached.amax(0) - reached.amin(0) + 1).tolist())
