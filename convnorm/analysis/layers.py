"""Running a model once to look at it: which modules count as layers, on what, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside a ``with`` block, then every module's own mode again."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def is_whole(module: nn.Module) -> bool:
    """Whether a module is one layer with all that is in it: a leaf, attention, or one with parametrized weights."""
    leaf = not any(True for _ in module.children())
    return leaf or isinstance(module, nn.MultiheadAttention) or is_parametrized(module)


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``(name, module)`` of every layer: whole modules, and containers that have parameters of their own."""

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        whole = is_whole(module)
        if whole or any(True for _ in module.parameters(recurse=False)):
            yield name or type(module).__name__.lower(), module
        if not whole:
            for child_name, child in module.named_children():
                yield from walk(f"{name}.{child_name}" if name else child_name, child)

    seen: set[int] = set()
    yield from walk("", model)


def sizes_of(what: str, input_size: Sequence[int] | Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The sizes of all inputs of a model, each without the batch dimension.

    Raises:
        ValueError: a size below 1; ``what`` is the function that was called.
    """
    flat = all(isinstance(s, int) for s in input_size)
    sizes: list[tuple[int, ...]] = [tuple(s) for s in ([input_size] if flat else input_size)]  # type: ignore[arg-type]
    if any(s < 1 for size in sizes for s in size):
        raise ValueError(f"{what}: input_size {input_size} must have sizes of at least 1")
    return sizes


def stand_ins(model: nn.Module, sizes: list[tuple[int, ...]], device: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    """(copies of the parameters and buffers on ``device``, inputs of one sample)."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtype = next((t.dtype for t in state.values() if t.dtype.is_floating_point), torch.float32)
    copies = {name: t.detach().to(device, copy=True) for name, t in state.items()}
    return copies, [torch.zeros((1, *size), dtype=dtype, device=device) for size in sizes]
