"""The layers of a user's model as contests: each against a copy of itself that convnorm computes.

The model runs once with hooks, which note every call of a layer that :func:`convnorm.convert` would swap. Calls that
agree in layer type, settings and shapes are one contest. Inputs are random numbers of the shapes that were seen
(indices are the ones that were seen), weights are the model's.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..analysis.layers import evaluating
from ..convert import conversion_report, convert, pairs, revert
from .problem import FORMATS, Contest, Forward, Problem, arranged, gradient_for, random, size
from .work import arithmetic, window_size

_SETTINGS = ("kernel_size", "output_size", "num_groups", "normalized_shape", "stride", "padding", "output_padding",
             "dilation", "groups", "padding_mode", "ceil_mode", "count_include_pad", "divisor_override")  # fmt: skip
_DEFAULTS = {"padding": 0, "output_padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros",
             "ceil_mode": False, "count_include_pad": True, "divisor_override": None}  # fmt: skip
_CONVS = (nn.modules.conv._ConvNd,)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass
class Layer:
    """Layers of a model that do the same work."""

    module: nn.Module  # the first of them
    problem: Problem
    arguments: list[Any]  # of its forward; tensors of floating point numbers as meta tensors
    names: list[str] = field(default_factory=list)

    @property
    def op(self) -> str:
        """The snake_case stem: ``max_pool`` of MaxPool2d."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.sub(r"\dd$", "", type(self.module).__name__)).lower()


def _short(value: Any) -> Any:
    """(3, 3) as 3."""
    if isinstance(value, (tuple, list)):
        return value[0] if len(set(value)) == 1 else tuple(value)
    return value


def _settings(module: nn.Module) -> dict[str, Any]:
    found = {key: _short(getattr(module, key)) for key in _SETTINGS if hasattr(module, key)}
    if isinstance(module, _CONVS):
        del found["kernel_size"]  # the weight's shape has it
        _leave_out(found, "stride", 1)
    for key, usual in _DEFAULTS.items():
        _leave_out(found, key, usual)
    return found


def _leave_out(settings: dict[str, Any], key: str, usual: Any) -> None:
    if key in settings and settings[key] == usual:
        del settings[key]


def _remembered(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) and value.is_floating_point() else value


def _racers(model: nn.Module) -> tuple[dict[int, str], list[str]]:
    """(names of the layers that both can compute, by id; the others of convnorm's kinds, each with the reason)."""
    table = pairs()
    names, others = {}, []
    for entry in conversion_report(model).entries:
        name = entry.name or "model"
        if entry.target is not None or type(entry.module) in table.values():
            names[id(entry.module)] = name
        elif entry.status == "convnorm":
            others.append(f"{name} (torch has no {entry.kind})")
        elif isinstance(entry.module, tuple(table)):
            others.append(f"{name} ({entry.reason})")
    return names, others


def layers_of(model: nn.Module, inputs: list[Tensor]) -> tuple[list[Layer], list[str]]:
    """The layers that both can compute, in the order they run; and those that are not raced, each with the reason."""
    names, others = _racers(model)
    found: dict[str, Layer] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        arguments = [*args, *kwargs.values()]
        shapes = [tuple(t.shape) for t in arguments if isinstance(t, Tensor) and t.is_floating_point()]
        if isinstance(module, _CONVS):
            shapes.append(tuple(module.weight.shape))
        problem = Problem(tuple(shapes), _settings(module), "")
        key = f"{type(module).__name__} {problem} {module.extra_repr()}"
        layer = found.setdefault(key, Layer(module, problem, [_remembered(a) for a in arguments]))
        layer.names.append(names[id(module)])

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in model.modules() if id(m) in names]
    try:
        with torch.no_grad(), evaluating(model):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    ran = {name for layer in found.values() for name in layer.names}
    return list(found.values()), [*others, *(f"{name} (did not run)" for name in names.values() if name not in ran)]


def source(names: list[str]) -> str:
    """``conv1``, or ``layer1.0.conv1 and 3 more``."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _forward(module: nn.Module, arguments: list[Any], mode: str) -> Forward:
    module.train(mode != "inference")
    if mode == "inference":
        return Forward(module, arguments, recording=False)
    given = [a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    return Forward(module, given, recording=True)


def _player(module: nn.Module, arguments: list[Any], mode: str, layout: str) -> Callable[[], Any]:
    forward = _forward(module, arguments, mode)
    if mode != "backward":
        return forward.player(module)
    given = forward.inputs
    leaves = [a for a in (*given, *module.parameters()) if isinstance(a, Tensor) and a.is_floating_point()]
    out = module(*given)
    out = out[0] if isinstance(out, tuple) else out
    gradient = gradient_for(out, layout)
    return lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True)


def _modes(layer: Layer, training: bool) -> list[tuple[str, str]]:
    """(op of the row, mode); batch norm computes something else in training than in evaluation."""
    both = isinstance(layer.module, nn.modules.batchnorm._BatchNorm)
    modes = [(f"{layer.op}_eval" if both else layer.op, "inference")]
    if training:
        modes += [(layer.op, "training")] if both else []
        modes += [(f"{layer.op}_backward", "backward")]
    return modes


def _made(argument: Any, dtype: torch.dtype, layout: str) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return random(tuple(argument.shape), dtype, layout) if argument.is_meta else arranged(argument, layout)


def contests(layer: Layer, layout: str, dtype: torch.dtype, training: bool = True) -> Iterator[Contest]:
    """The forward and, for ``training``, the gradients (and batch norm's other forward), in one layout and dtype."""
    arguments = [_made(a, dtype, layout) for a in layer.arguments]
    first = next(a for a in arguments if isinstance(a, Tensor))
    theirs = revert(copy.deepcopy(layer.module)).to(dtype).requires_grad_()
    if layout == "channels_last":
        theirs.to(memory_format=FORMATS[first.dim()])  # type: ignore[call-overload]
    ours = convert(copy.deepcopy(theirs))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = copy.deepcopy(theirs)(*arguments)
    tensors = [t for t in (*arguments, *theirs.parameters(), *(out if isinstance(out, tuple) else (out,)))
               if isinstance(t, Tensor)]  # fmt: skip
    flops, moved = float(counter.get_total_flops()), size(*tensors)
    results, window = tensors[-1].numel(), window_size(layer.problem.arguments, first.dim() - 2)
    exact = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    problem = Problem(layer.problem.shapes, layer.problem.arguments, source(layer.names))
    for op, mode in _modes(layer, training):
        backward = mode == "backward"
        # a convolution has two gradients, each as much work as the forward
        work = flops * (1 + backward) if flops else arithmetic(op, first.numel(), results, window)
        least = moved + (size(first) if backward and isinstance(layer.module, _NORMS) else 0)
        players = [_player(copy.deepcopy(m), arguments, mode, layout) for m in (ours, theirs)]

        def reference(mode: str = mode) -> Any:
            return _player(copy.deepcopy(theirs).double(), exact, mode, layout)()

        forward = None if backward else functools.partial(_forward, copy.deepcopy(theirs), arguments, mode)
        unit = "GFLOP/s" if flops else "GB/s"
        yield Contest(op, problem, layout, dtype, players[0], players[1], reference, work, least, unit,
                      len(layer.names), forward)  # fmt: skip
