"""The table of a model: per layer output size, weights, multiply-adds, bytes and receptive fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..flops import flops
from .layers import evaluating, is_whole, layers, sizes_of, stand_ins
from .receptive import FieldTracker
from .table import HEADINGS, Row, Summary

__all__ = ["HEADINGS", "Row", "Summary", "summary"]


class _Tracker(FieldTracker):
    """Follows receptive fields, and counts the FLOPs of every operation for the innermost layer that runs."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__(inputs)
        self.running: list[int] = [0]  # FLOPs per open layer; the first entry is what no layer did
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        count = flops(func, args, kwargs or {}, out) or 0
        self.running[-1] += count
        self.total += count
        return out


def _weight_size(module: nn.Module) -> tuple[int, ...] | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return None
    return tuple(reversed(weight.shape)) if isinstance(module, nn.Linear) else tuple(weight.shape)


def _own(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a layer, without those of layers inside it that have their own rows."""
    return list(module.parameters(recurse=is_whole(module)))


def _bytes(module: nn.Module, tensors: Sequence[Tensor]) -> int:
    if isinstance(module, (nn.Flatten, nn.Unflatten, nn.Identity)):
        return 0
    return sum(t.numel() * t.element_size() for t in (*tensors, *_own(module)))


@contextmanager
def _hooked(model: nn.Module, tracker: _Tracker, rows: list[Row]) -> Iterator[None]:
    counted: set[int] = set()

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        tracker.running.append(0)

    def end(name: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        macs = tracker.running.pop() // 2
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not outputs:
            return
        y = outputs[0]
        field, previous = tracker.layer(module, inputs[0], y) if inputs else (None, None)
        own = _own(module) if id(module) not in counted else []
        counted.add(id(module))
        rows.append(Row(name, type(module).__name__, tuple(y.shape[1:]), _weight_size(module),
                        sum(p.numel() for p in own), macs, _bytes(module, (*inputs, *outputs)), field, previous))

    handles = []
    for name, module in layers(model):
        handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        hook = lambda m, args, kwargs, out, name=name: end(name, m, args, kwargs, out)  # noqa: E731
        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def summary(model: nn.Module, input_size: Sequence[int] | Sequence[Sequence[int]], device: str = "meta") -> Summary:
    """The layers of ``model`` in the order they run, for one sample of ``input_size``.

    Args:
        model: any module. It is not changed: it runs once in eval mode on stand-ins for its parameters.
        input_size: size of one sample without the batch dimension, such as ``(3, 224, 224)``; or a list of sizes,
            one per argument of ``forward``.
        device: ``'meta'`` computes sizes only and allocates nothing. A model whose forward looks at values needs
            ``'cpu'``.

    Returns:
        A :class:`Summary`. A layer is a module without modules in it, or one with parameters of its own.
        Operations outside of layers (additions, ``F.conv2d``) have no row, but their multiply-adds are in the
        totals and receptive fields are followed through them; where branches meet, the larger field counts.

    Raises:
        ValueError: a size below 1. What the model itself raises on such an input comes through.

    Example:
        >>> print(convnorm.analysis.summary(convnorm.models.LeNet5(norm=False), (1, 28, 28)))
    """
    sizes = sizes_of("summary", input_size)
    state, inputs = stand_ins(model, sizes, device)
    tracker = _Tracker(inputs)
    rows = [Row("input", "", sizes[0], None, 0, 0, 0, tracker.get(inputs[0]), None)]
    with torch.no_grad(), evaluating(model), _hooked(model, tracker, rows), tracker:
        torch.func.functional_call(model, state, tuple(inputs))
    parameters = sum(math.prod(p.shape) for p in model.parameters())
    return Summary(rows, parameters, tracker.total // 2, tracker.running[0] // 2)
