"""Why a call runs as it does: the kernels that were considered for it, the winner, and what it costs at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from . import _C
from .flops import flops


@dataclass(frozen=True)
class Verdict:
    """One kernel of an op's ordered list: the first that accepts is chosen."""

    op: str
    kernel: str
    about: str
    chosen: bool
    refusal: str


@dataclass(frozen=True)
class Call:
    """One call of one convnorm op."""

    op: str
    phase: str  # "forward" or "backward"
    arguments: str
    flops: int | None  # 2 per multiply-add, counted as direct convolution; None for ops bound by memory
    bytes: int  # fewest possible: every input read once, every output written once
    kernels: tuple[Verdict, ...]

    @property
    def kernel(self) -> str:
        """The names of the kernels that ran, in order."""
        return ", ".join(v.kernel for v in self.kernels if v.chosen)

    def lines(self) -> list[str]:
        """The call as text."""
        work = f"{self.bytes:,} bytes at least"
        if self.flops is not None:
            work = f"{self.flops:,} FLOP, {work}, {self.flops / max(self.bytes, 1):.1f} FLOP per byte"
        text = [f"{self.op} ({self.phase})", f"  {self.arguments}", f"  {work}"]
        wide = max((len(v.kernel) for v in self.kernels), default=0)
        for v in self.kernels:
            verdict = f"chosen: {v.about}" if v.chosen else v.refusal
            text.append(f"  {'->' if v.chosen else '  '} {v.kernel:{wide}}  {verdict}")
        return text


@dataclass(frozen=True)
class Explanation:
    """Every convnorm op that a call ran; ``str()`` is a readable page."""

    calls: tuple[Call, ...]
    isa: str
    threads: int

    @property
    def kernels(self) -> list[str]:
        """The kernels that ran, in order."""
        return [v.kernel for call in self.calls for v in call.kernels if v.chosen]

    def __repr__(self) -> str:
        return f"<Explanation: {len(self.calls)} calls, kernels {', '.join(self.kernels) or 'none'}>"

    def __str__(self) -> str:
        lines = [f"instruction set {self.isa}, {self.threads} threads"]
        if not self.calls:
            lines.append("no convnorm op ran: the layers are torch's own (convnorm.convert swaps them)")
        for call in self.calls:
            lines += ["", *call.lines()]
        return "\n".join(lines)


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(list(value)) if isinstance(value, (list, tuple)) else str(value)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(value.dim())
    layout = "strided"
    if value.is_contiguous():
        layout = "contiguous"
    elif last and value.is_contiguous(memory_format=last):
        layout = "channels_last"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} {layout}"


def _arguments(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    names = [a.name for a in schema.arguments]
    pairs = [*zip(names, args, strict=False), *kwargs.items()]
    return ", ".join(f"{name} {_describe(value)}" for name, value in pairs if value is not None)


def _bytes(values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.phase = "forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace, op = func._schema.name.split("::")
        if namespace != "convnorm":
            return func(*args, **kwargs)
        _C.trace_begin()
        try:
            out = func(*args, **kwargs)
        finally:
            verdicts = tuple(Verdict(**row) for row in _C.trace_end())
        least = _bytes((args, kwargs)) + _bytes(out)
        text = _arguments(func._schema, args, kwargs)
        self.calls.append(Call(op, self.phase, text, flops(func, args, kwargs, out), least, verdicts))
        return out


@contextmanager
def _undone(target: Any) -> Iterator[None]:
    """Buffers (running statistics) and random state as they were before."""
    buffers = list(target.buffers()) if isinstance(target, nn.Module) else []
    before = [b.clone() for b in buffers]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def explain(target: Callable[..., Any], *inputs: Any, backward: bool = False, **kwargs: Any) -> Explanation:
    """Run ``target(*inputs, **kwargs)`` once and tell which kernels computed it, and why those.

    Args:
        target: a module, a function of :mod:`convnorm.functional`, or any callable.
        inputs, kwargs: its arguments.
        backward: also run the backward pass from the sum of the outputs, with gradients for the floating-point
            inputs and the parameters. No ``.grad`` is written; buffers such as running statistics are restored.

    Returns:
        An :class:`Explanation`: per op its arguments, FLOPs (convolutions), fewest bytes and the ordered list of
        kernels with the reason for each refusal.

    Example:
        >>> print(convnorm.explain(convnorm.nn.Conv2d(3, 8, 3), torch.randn(1, 3, 32, 32), backward=True))
    """
    if backward:
        inputs, kwargs = tree_map(_fresh_leaf, (inputs, kwargs))
    recorder = _Recorder()
    with _undone(target), recorder, torch.set_grad_enabled(backward):
        out = target(*inputs, **kwargs)
        if backward:
            recorder.phase = "backward"
            _run_backward(target, out, (inputs, kwargs))
    return Explanation(tuple(recorder.calls), _C.active_isa(), torch.get_num_threads())


def _fresh_leaf(value: Any) -> Any:
    return value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


def _run_backward(target: Any, out: Any, inputs: Any) -> None:
    outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
    parameters = list(target.parameters()) if isinstance(target, nn.Module) else []
    wanted = [t for t in (*tree_leaves(inputs), *parameters) if isinstance(t, Tensor) and t.requires_grad]
    if outputs and wanted:
        ones = [torch.ones_like(t) for t in outputs]
        torch.autograd.grad(outputs, wanted, ones, allow_unused=True)
