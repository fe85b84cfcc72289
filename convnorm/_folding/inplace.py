"""In-place operations of a forward: recorded as such in a trace, and found in a graph."""

from __future__ import annotations

import inspect
import operator
from typing import Any

from torch import fx, nn

from ..nn._hooks import hooked

_OPERATORS = [getattr(operator, f"i{name}") for name in
              ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift",
               "rshift")]  # fmt: skip
_IN_PLACE = {*_OPERATORS, operator.setitem, operator.delitem}


class InPlaceProxy(fx.Proxy):
    """A proxy that records ``x += y`` as that. fx's own makes ``x = x + y`` of it, so that other names of the same
    tensor would seem to keep the old values."""


class Retracer(fx.Tracer):
    """Follows a graph anew (unpickling does) with its in-place steps."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)


def _recorded(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in _OPERATORS:
    setattr(InPlaceProxy, f"__{_function.__name__}__", _recorded(_function))


def _asked_in_place(target: Any, args: Any, kwargs: Any) -> bool:
    """Whether a function with an argument ``inplace`` is given a true one."""
    try:
        given = inspect.signature(target).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # a built-in function without a signature, which has no such argument
        return bool(kwargs.get("inplace"))
    return bool(given.get("inplace"))


def _known(module_name: str | None) -> bool:
    """torch's and convnorm's functions say what they change; others might change anything."""
    return (module_name or "torch").split(".")[0] in ("torch", "_operator", "builtins", "math", "convnorm")


def may_change(node: fx.Node, root: nn.Module) -> bool:
    """Whether a step may change a tensor that existed before it."""
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i") or name == "__setitem__"
    if node.op == "call_function":
        function: Any = node.target
        name = getattr(function, "__name__", "")
        if function in _IN_PLACE or "out" in node.kwargs or (name.endswith("_") and not name.endswith("__")):
            return True
        return not _known(getattr(function, "__module__", None)) or _asked_in_place(function, node.args, node.kwargs)
    if node.op == "call_module":
        parts = list(root.get_submodule(str(node.target)).modules())
        ours = all(type(m).__module__.startswith(("torch.nn.", "convnorm.")) for m in parts)
        return not ours or any(getattr(m, "inplace", False) or hooked(m) for m in parts)
    return False


def changed_between(first: fx.Node, last: fx.Node, root: nn.Module, apart: tuple[fx.Node, ...] = ()) -> fx.Node | None:
    """A step between two that may change a tensor, other than those of ``apart``."""
    node = first.next
    while node is not last:
        if node not in apart and may_change(node, root):
            return node
        node = node.next
    return None
