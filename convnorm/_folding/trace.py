"""Seeing every use of every layer: torch.fx's trace of a model, taken without touching the model.

Layers of torch.nn and convnorm.nn are single nodes. With a sample each node also has its value, so decisions that a
model takes by shapes or types (``if x.shape[1] != self.channels: raise``) can be followed; decisions by values cannot.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_any, tree_flatten, tree_leaves, tree_map

from .. import functional as CF
from ..nn._hooks import hooked
from .inplace import InPlaceProxy

# What can be asked of a tensor without reading its values: folding changes none of it.
_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad", "itemsize"}
_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "element_size",
            "is_floating_point", "is_complex", "get_device"}  # fmt: skip
_FUNCTIONS = {torch.numel, torch.is_floating_point, torch.is_complex}
FOLDABLE = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
_PLAIN = (fx.Proxy, Tensor, bool, int, float, str, type(None))  # outputs that hide nothing


class Untraceable(Exception):
    """torch.fx cannot follow the model; the text is the reason."""


def reads_values(node: fx.Node) -> bool:
    """False where a node asks for its input's shape, dtype and the like only."""
    if node.op == "call_method":
        return node.target not in _METHODS
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] not in _ATTRIBUTES
    return node.target not in _FUNCTIONS


def plain_forward(module: nn.Module) -> bool:
    """Whether a layer computes what torch's or convnorm's does: a subclass may add to it, but not to its forward."""
    if {"forward", "_conv_forward"} & vars(module).keys():
        return False
    names = ("forward", "_conv_forward", "__call__", "__getattr__", "__getattribute__")
    owners = [next((c for c in type(module).__mro__ if name in vars(c)), object) for name in names]
    return all(c is object or c.__module__.startswith(("torch.nn.modules.", "convnorm.nn.")) for c in owners)


class _Valued(InPlaceProxy):
    """A proxy that knows its value on the sample, and passes for it where a model asks ``isinstance(x, Tensor)``."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.node.meta["value"])

    def __getattr__(self, name: str) -> Any:
        value = self.node.meta["value"]
        private = name.startswith("_")  # such as what isinstance(x, Parameter) looks for
        return getattr(value, name) if private or name in _ATTRIBUTES else super().__getattr__(name)

    def __len__(self) -> int:
        return len(self.node.meta["value"])

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))  # type: ignore[index]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else an in-place change of a buffer would be carried out

    def __init__(self, sample: tuple[tuple, dict] | None, valued: bool) -> None:
        super().__init__(autowrap_functions=tuple(getattr(CF, name) for name in CF.__all__))
        self.sample, self.valued, self.evaluating = sample, valued, False
        self.returned: TreeSpec  # the structure of what the forward returns

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = type(m).__module__.startswith("convnorm.nn.") and not m._modules  # ConvNormAct is made of layers
        ours = layer or (isinstance(m, FOLDABLE) and plain_forward(m))
        return ours or hooked(m) or super().is_leaf_module(m, module_qualified_name)

    def create_arg(self, a: Any) -> Any:
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)  # whatever its __class__ says

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list]:
        """Placeholders for the sample's tensors, or without a sample for every argument that must be given."""
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        if self.sample is not None:
            named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            named += [f"input{i}" for i in range(len(named), len(self.sample[0]))]
            args = [self._placeholders(name, arg) for name, arg in zip(named, self.sample[0], strict=False)]
            kwargs = {name: self._placeholders(name, arg) for name, arg in self.sample[1].items()}
        else:
            given = [p for p in parameters if p.default is p.empty]
            args = [self._placeholder(p.name) for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            kwargs = {p.name: self._placeholder(p.name) for p in given if p.kind is p.KEYWORD_ONLY}

        def forward() -> list[Any]:
            leaves, self.returned = tree_flatten(root_fn(self.root, *args, **kwargs))
            if hidden := [x for x in leaves if not isinstance(x, _PLAIN)]:
                raise TypeError(f"it returns a {type(hidden[0]).__name__}, whose contents cannot be seen")
            return leaves

        return forward, []

    def _placeholders(self, name: str, argument: Any) -> Any:
        """One named as the argument, where that is a tensor; else one for each tensor in it."""
        count = iter(range(10**6))
        one = isinstance(argument, Tensor)
        return tree_map(lambda leaf: self._placeholder(name if one else f"{name}_{next(count)}", leaf), argument)

    def _placeholder(self, name: str, value: Any = None) -> Any:
        if self.sample is not None and not isinstance(value, Tensor):
            return value
        proxy = self.create_proxy("placeholder", name, (), {})
        proxy.node.meta["value"] = value.clone() if self.valued else None  # the model may change it
        return proxy

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return (_Valued if self.valued else InPlaceProxy)(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if not self.valued or kind == "placeholder":
            return proxy
        value = proxy.node.meta["value"] = self._evaluate(kind, target, args, kwargs)
        if reads_values(proxy.node) or tree_any(lambda leaf: isinstance(leaf, Tensor), value):
            return proxy
        self.graph.erase_node(proxy.node)
        return value

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = fx.node.map_aggregate(
            (args, kwargs), lambda a: a.node.meta["value"] if isinstance(a, fx.Proxy) else a)
        self.evaluating = True
        try:
            if kind == "call_function":
                return target(*args, **kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            found = functools.reduce(getattr, target.split("."), self.root)
            return found if kind == "get_attr" else found(*args, **kwargs)
        finally:
            self.evaluating = False

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)


def duplicate(model: nn.Module, share: bool = False) -> nn.Module:
    """A deep copy; with ``share`` the parameters are the model's own.

    Results of a forward that a module keeps (torch's older weight norm does) have no deep copy, and are shared.
    """
    kept = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t for t in (*kept, *(model.parameters() if share else ()))})


def trace(model: nn.Module, sample: tuple[tuple, dict] | None, valued: bool = True) -> tuple[nn.Module, fx.Graph]:
    """A copy of ``model`` that shares its parameters, and the graph of its forward.

    Without a sample, arguments that have defaults keep them. With one, nodes have their values on it, unless ``valued``
    is False: sizes then stay steps of the graph. The node of the output has the structure of what is returned.

    Raises:
        Untraceable: the model cannot be copied or followed, or keeps tensors in its attributes.
    """
    try:
        twin = duplicate(model, share=True)
        tracer = _Tracer(sample, valued and sample is not None)
        with torch.no_grad():
            graph = tracer.trace(twin)
        next(iter(reversed(graph.nodes))).meta["returned"] = tracer.returned
    except Exception as error:  # whatever the model's own code raises when it meets a proxy
        first = str(error).partition("\n")[0]
        raise Untraceable(f"{type(error).__name__}: {first}") from error
    for name, module in twin.named_modules():
        kept = [key for key, value in vars(module).items() if any(isinstance(x, fx.Proxy) for x in tree_leaves(value))]
        if kept:
            raise Untraceable(f"{name or 'the model'} keeps a tensor of its forward in {kept[0]!r}")
    return twin, graph
