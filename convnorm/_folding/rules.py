"""Which batch norms can be folded: every rule, each with the reason that a report prints."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_leaves

from .._selection import Selection, names_of
from ..nn.conv_act import _ConvAct
from .activation import FUSED
from .arithmetic import WITH_ACT, BatchNorm, Fold, Layer, dimensions, folded, needed_rank, remainder
from .inplace import changed_between
from .trace import hooked, plain_forward, reads_values

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class Refused(Exception):
    """A batch norm stays; the text is the reason."""


def obstacle(module: nn.Module) -> str:
    """Why a layer or batch norm cannot take part, whatever surrounds it; empty when it can."""
    if is_parametrized(module) or any(module._parameters.get(n) is None and getattr(module, n, None) is not None
                                      for n in ("weight", "bias")):  # fmt: skip
        return "its weights are parametrised (computed anew on every call)"
    if isinstance(module, LazyModuleMixin):
        return "it is lazy: fold after its first forward"
    if not plain_forward(module):
        return f"its forward is not torch's or convnorm's own ({type(module).__name__}) and may compute something else"
    if hooked(module):
        return "it has hooks, which would see other values"
    weights = [t for t in module._parameters.values() if t is not None]
    if any(type(t) is not nn.Parameter or not t.is_floating_point() or t.is_meta for t in weights):
        return "its parameters are not plain real tensors with values"
    return ""


@dataclass
class Traced:
    """A traced model: the copy, its graph, and what is known of all uses of its modules."""

    model: nn.Module
    graph: fx.Graph
    exclude: Selection
    calls: Counter[int] = field(default_factory=Counter)  # of a module, by id
    inside: dict[int, str] = field(default_factory=dict)  # id of a module -> the single node that it is part of
    read: dict[int, str] = field(default_factory=dict)  # id of a tensor -> what reads it other than its module

    def __post_init__(self) -> None:
        self.named = names_of(self.model)
        self.owners = Counter(id(p) for m in self.model.modules() for p in m._parameters.values() if p is not None)
        for node in self.graph.nodes:
            if node.op == "call_module":
                module = self.model.get_submodule(node.target)
                self.calls[id(module)] += 1
                self.inside.update((id(m), node.target) for m in module.modules() if m is not module)
            elif node.op == "get_attr" and any(reads_values(user) for user in node.users):
                *path, name = node.target.split(".")
                value = getattr(self.model.get_submodule(".".join(path)), name)
                inner = value.parameters() if isinstance(value, nn.Module) else [value]
                self.read.update((id(t), node.target) for t in inner)

    def check(self, module: nn.Module) -> None:
        """Refuse a module that is excluded, unfit, or not used exactly once."""
        names = self.named[id(module)][1]
        if self.exclude.has(module, names):
            raise Refused("excluded")
        if reason := obstacle(module):
            raise Refused(reason)
        if id(module) in self.inside:
            raise Refused(f"it is part of {self.inside[id(module)]}, whose inner steps are not seen")
        if self.calls[id(module)] != 1:
            times = self.calls[id(module)]
            raise Refused(f"it is used {times} times" if times else "the traced forward does not use it")
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) in self.read:
                raise Refused(f"the model reads {self.read[id(tensor)]} itself")

    def call_of(self, module: nn.Module) -> fx.Node:
        """The one call of a module that is used once."""
        return next(n for n in self.graph.nodes
                    if n.op == "call_module" and self.model.get_submodule(n.target) is module)  # fmt: skip

    def layer_before(self, node: fx.Node, source: object) -> tuple[str, Layer]:
        """The layer that ``source`` is a call of, whose only use is ``node``."""
        layer = None
        if isinstance(source, fx.Node) and source.op == "call_module":
            layer = self.model.get_submodule(source.target)  # type: ignore[arg-type]
        if not isinstance(layer, _LAYERS):
            raise Refused(f"it follows {_describe(source, layer)}, which is no convolution or linear layer")
        assert isinstance(source, fx.Node)
        name = str(source.target)
        if isinstance(layer, _ConvAct):
            raise Refused(f"it follows {_describe(source, layer)}, which has an activation of its own")
        try:
            self.check(layer)
        except Refused as reason:
            raise Refused(f"{name} stays as it is: {reason}") from None
        others = [str(user) for user in source.users if user is not node and reads_values(user)]
        if sum(n is source for n in tree_leaves((node.args, node.kwargs))) > 1:
            others.append("the residual")
        if others:
            raise Refused(f"the output of {name} is also used by {', '.join(others)}")
        if any(self.owners[id(p)] > 1 for p in layer.parameters()):
            raise Refused(f"{name} shares parameters with another module")
        return name, layer

    def check_fit(self, norm: BatchNorm, name: str, layer: Layer, value: object) -> None:
        """Refuse a batch norm of another kind of output than the layer's, which on the sample is ``value``."""
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        if dimensions(norm) not in (None, dimensions(layer)) or norm.num_features != channels:
            raise Refused(f"it does not fit the output of {name}: {type(layer).__name__} with {channels} channels")
        rank = needed_rank(layer, norm)
        if isinstance(value, Tensor) and rank not in (None, value.dim()):
            raise Refused(f"the {value.dim()}D output of {name} has its channels in another dimension than 1")


def unfit(layer: nn.Module) -> str:
    """What a layer is that cannot compute an activation."""
    kind = type(layer).__name__
    torchs = any(type(layer) in t.__bases__ for t in FUSED)
    return f"torch's {kind}: convnorm.convert makes it one that can" if torchs else f"a {kind}, which has no such call"


def input_of(node: fx.Node) -> object:
    """What a module is called with first."""
    return node.args[0] if node.args else node.kwargs.get("input")


def _describe(source: object, module: nn.Module | None) -> str:
    if isinstance(source, fx.Node) and module is not None:
        return f"{source.target} ({type(module).__name__})"
    if isinstance(source, fx.Node) and source.op == "placeholder":
        return "an input of the model"
    return f"a call of {source}"


def decide(traced: Traced, norm: BatchNorm) -> Fold:
    """How a batch norm of the copy is folded; raises Refused."""
    traced.check(norm)
    if norm.training:
        raise Refused("it is in training mode")
    if norm.running_mean is None or norm.running_var is None:
        raise Refused("it has no running statistics")
    node = traced.call_of(norm)
    source = input_of(node)
    name, layer = traced.layer_before(node, source)
    assert isinstance(source, fx.Node)
    traced.check_fit(norm, name, layer, source.meta.get("value"))
    weight, bias = folded(layer, norm)
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise Refused(f"the folded weights of {name} would not be finite in {weight.dtype}")
    residual = node.args[1] if len(node.args) > 1 else node.kwargs.get("residual")
    own = traced.named[id(norm)][1][0]
    place, apart, act = "", "", None
    if isinstance(norm, WITH_ACT) and (residual is not None or norm.act):
        place, apart = _place(traced, norm, layer, source, node, residual is not None)
        act = norm.act if place else None
    rest = remainder(layer, norm, residual is not None, bool(place))
    return Fold(name, own, rest, weight, bias, place, act, apart)


def _place(traced: Traced, norm: BatchNorm, layer: Layer, source: fx.Node, node: fx.Node,
           residual: bool) -> tuple[str, str]:
    """Where one call can compute a layer with the residual and activation of its batch norm: "layer", or "norm",
    where the residual is known; or why nowhere."""
    if type(layer) not in FUSED:
        return "", f"{source.target} is {unfit(layer)}"
    if not residual:
        return "layer", ""
    if needed_rank(layer, norm) is not None:
        return "", "the rank of what comes before is checked in between"
    if changing := changed_between(source, node, traced.model):
        return "", f"{changing} may change the input of {source.target} in between"
    return "norm", ""
