"""Convolution, sum and ReLU as they follow each other in a graph, made one call each."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from .activation import FUSED, fuse_act
from .arithmetic import _require_rank
from .inplace import changed_between
from .rules import Refused, Traced, input_of, obstacle, unfit

_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_INTO_FIRST = {operator.iadd, "add_"}  # these write over their first operand
_RELUS = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}


@dataclass
class Chain:
    """A call of a convolution and the steps after it that the same call can compute."""

    conv: fx.Node
    nodes: list[fx.Node]  # conv first; they follow each other, and nothing else uses what is between them
    residual: fx.Node | None = None
    relu: bool = False
    parts: list[str] = field(default_factory=list)  # of the report
    stopped: str = ""  # why it does not go on


def _operands(node: fx.Node) -> tuple[object, object]:
    """What a step adds up."""
    found: list[object] = [*node.args, *(node.kwargs[k] for k in ("input", "other") if k in node.kwargs)]
    if set(node.kwargs) - {"input", "other"} or len(found) != 2:
        raise Refused(f"{node} has a factor or a destination")
    return found[0], found[1]


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Of one shape and dtype on the sample."""
    x, y = a.meta.get("value"), b.meta.get("value")
    return isinstance(x, Tensor) and isinstance(y, Tensor) and (x.shape, x.dtype) == (y.shape, y.dtype)


def _from_input(node: fx.Node) -> bool:
    """Whether a value depends on what the model is called with: a weight's shape is not the output's for all inputs."""
    seen, left = {node}, [node]
    while left:
        here = left.pop()
        if here.op == "placeholder":
            return True
        left += [n for n in here.all_input_nodes if n not in seen]
        seen.update(left)
    return False


def _comes_later(conv: fx.Node, other: fx.Node, traced: Traced) -> bool:
    """Whether the other operand of a sum is a convolution, too, which comes after this one and so is nearer to it."""
    while _is(other, traced.model, set(), nn.Identity) and len(other.users) == 1:
        other = other.all_input_nodes[0]
    if other.op != "call_module" or len(other.users) != 1:
        return False
    module = traced.model.get_submodule(str(other.target))
    if type(module) not in FUSED or traced.calls[id(module)] != 1:
        return False
    while conv.op != "root":  # where the nodes of a graph end
        conv = conv.next
        if conv is other:
            return True
    return False


def _residual(chain: Chain, node: fx.Node, traced: Traced) -> fx.Node:
    """What a step adds to the last value of the chain; raises Refused."""
    last = chain.nodes[-1]
    first, second = _operands(node)
    if first is last and second is last:
        raise Refused(f"{node} adds it to itself")
    other = second if first is last else first
    if first is not last and node.target in _INTO_FIRST:
        raise Refused(f"{node} writes the sum over the residual")
    if not isinstance(other, fx.Node):
        raise Refused(f"{node} adds a number")
    if last.meta.get("value") is None:
        raise Refused(f"whether {node} adds tensors of one shape is seen on a sample only")
    if not _alike(last, other) or not _alike(last, node):
        raise Refused(f"{node} adds tensors of different shapes or dtypes")
    if not _from_input(other):
        raise Refused(f"{node} adds a constant")
    if node.target not in _INTO_FIRST and _comes_later(chain.conv, other, traced):
        raise Refused(f"{node} joins the other convolution that it adds")
    return other


def _is(node: fx.Node, root: nn.Module, functions: set[Any], kind: type | None) -> bool:
    """Whether a step is a call of one of these functions and methods, or of a module of this kind without hooks."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return type(module) is kind and not obstacle(module)
    return node.op in ("call_function", "call_method") and node.target in functions


def _extend(chain: Chain, traced: Traced) -> None:
    """Take one more step into the chain, where it is one that can be."""
    root, last = traced.model, chain.nodes[-1]
    if len(last.users) != 1:
        raise Refused(f"its output is used {len(last.users)} times")
    node = next(iter(last.users))
    if _is(node, root, set(), nn.Identity):
        chain.nodes.append(node)
        return
    if chain.residual is None and _is(node, root, _ADDS, None):
        chain.residual = _residual(chain, node, traced)
        chain.parts.append("a sum")
    elif _is(node, root, _RELUS, nn.ReLU):
        if node.op == "call_module":
            relu = root.get_submodule(str(node.target))
            if traced.exclude.has(relu, traced.named[id(relu)][1]):
                raise Refused(f"{node.target} is excluded")
        chain.relu = True
        chain.parts.append("ReLU")
    else:
        raise Refused(f"{node} comes next" if node.op != "output" else "it is returned")
    chain.nodes.append(node)


def chain_from(traced: Traced, conv: fx.Node) -> Chain:
    """The longest chain from the call of a convolution of convnorm.nn; it may be that call alone."""
    root, chain = traced.model, Chain(conv, [conv])
    module = root.get_submodule(str(conv.target))
    before: Chain = chain
    try:
        if type(module) not in FUSED:
            raise Refused(f"it is {unfit(module)}")
        traced.check(module)
        while not chain.relu:
            before = Chain(conv, [*chain.nodes], chain.residual, chain.relu, [*chain.parts])
            _extend(chain, traced)
            if changing := changed_between(conv, chain.nodes[-1], root, tuple(chain.nodes)):
                raise Refused(f"{changing} may change what it is computed from, before {chain.nodes[-1]}")
    except Refused as reason:
        before.stopped = str(reason)
        return before
    return chain


def rewrite(traced: Traced, chain: Chain) -> None:
    """Put one call in the place of a chain's last step, where all that it reads has been computed."""
    conv, last = chain.conv, chain.nodes[-1]
    x: Any = input_of(conv)
    fuse_act(traced.model.get_submodule(str(conv.target)), "relu" if chain.relu else None)
    with traced.graph.inserting_before(last):
        args = (x,) if chain.residual is None else (x, chain.residual)
        new = traced.graph.call_module(str(conv.target), args)
    new.meta.update(last.meta)
    last.replace_all_uses_with(new)
    for node in reversed(chain.nodes):
        traced.graph.erase_node(node)


def move_rank_checks(traced: Traced) -> None:
    """Of what a folded BatchNorm1d leaves: the rank of a convolution's output is that of its input."""
    for node in traced.graph.nodes:
        if node.target is _require_rank:
            source, rank = node.args
            if source.op == "call_module" and type(traced.model.get_submodule(source.target)) in FUSED:
                node.args = (input_of(source), rank)


def drop_identities(graph: fx.Graph, root: nn.Module) -> None:
    """Take out the identities that are left."""
    for node in list(graph.nodes):
        if _is(node, root, set(), nn.Identity) and len(tree_leaves(node.args)) == 1 and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
