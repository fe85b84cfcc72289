"""A model as a graph that can be called: arguments by name, what is returned in its structure, shapes of all steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from .._selection import Selection
from .inplace import Retracer
from .rules import Traced
from .trace import Untraceable, trace
from .verify import Sample


def tensors_of(inputs: Sample) -> Sample:
    """The arguments that are tensors, which a graph takes; the others are constants of it."""
    for value in (*inputs[0], *inputs[1].values()):
        if not isinstance(value, Tensor) and any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            kind = type(value).__name__
            raise ValueError(f"fuse: the arguments of the sample must be tensors or plain values, one is a {kind}")
    by_name = {name: value for name, value in inputs[1].items() if isinstance(value, Tensor)}
    return tuple(value for value in inputs[0] if isinstance(value, Tensor)), by_name


class _Shapes(fx.Interpreter):
    """Notes what every step returns, without the data."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["value"] = tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) else t, result)
        return result


def follow(model: nn.Module, inputs: Sample | None, selection: Selection, sizes: bool) -> Traced:
    """The graph of a copy of a model, with shapes where there is a sample; ``sizes``: with the sample's sizes, too.

    Raises:
        Untraceable: as trace, or the steps do not run on the sample.
    """
    if sizes or inputs is None:
        return Traced(*trace(model, inputs), selection)
    twin, graph = trace(model, inputs, valued=False)
    args, kwargs = tensors_of(inputs)
    try:
        with torch.no_grad():
            _Shapes(twin, graph=graph).run(*(t.clone() for t in (*args, *kwargs.values())))
    except Exception as error:
        raise Untraceable(f"{type(error).__name__}: {error}") from error
    return Traced(twin, graph, selection)


def _check_structure(x: Any) -> None:
    if type(x) is dict:
        parts = list(x.values())
    elif type(x) in (tuple, list):
        parts = list(x)
    elif isinstance(x, (fx.Node, bool, int, float, str, type(None))):
        return
    else:
        raise RuntimeError(f"fuse: the model returns a {type(x).__name__}, which a graph cannot; it may return "
                           "tensors, tuples, lists and dicts")  # fmt: skip
    for part in parts:
        _check_structure(part)


def module_of(traced: Traced, name: str) -> fx.GraphModule:
    """The graph as a module that returns what the model does."""
    output = next(iter(reversed(traced.graph.nodes)))
    found = tree_unflatten(list(output.args[0]), output.meta.pop("returned"))
    _check_structure(found)
    output.args, output.type = (found,), None
    for node in traced.graph.nodes:
        node.meta.pop("value", None)
    traced.graph.lint()
    traced.graph._tracer_cls = Retracer
    return fx.GraphModule(traced.model, traced.graph, name)
