"""Problem strings: the shapes of the operands, then the settings, then where the problem comes from.

    4x64x56x56  64x64x3x3  stride=2 padding=1   # ResNet-50

A line may start with its op (``conv 4x64x56x56 ...``); without one the file's name says it (``conv.txt``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WORKLOADS = Path(__file__).resolve().parent / "workloads"
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
LAYOUTS = ("contiguous", "channels_last")
_WORDS = {"True": True, "False": False, "None": None}


class ProblemError(ValueError):
    """A line that is no problem; the text has the file, the line and the rule."""


def _written(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Problem:
    """One layer to race: shapes of its operands, its settings, and where it comes from."""

    shapes: tuple[tuple[int, ...], ...]
    arguments: dict[str, Any]
    source: str

    def __str__(self) -> str:
        shapes = [_written(shape) for shape in self.shapes]
        return " ".join([*shapes, *(f"{key}={_written(value)}" for key, value in self.arguments.items())])


@dataclass(frozen=True, eq=False)
class Forward:
    """A forward pass as a torch module, for peers that compile or export one."""

    module: nn.Module
    inputs: list[Tensor]
    recording: bool  # autograd records it
    trains: bool = False  # a backward and an optimizer's step follow

    def player(self, call: Callable[..., Any]) -> Callable[[], Any]:
        """``call``, which computes what the module does, as it is timed."""
        run = lambda: call(*self.inputs)  # noqa: E731
        return run if self.recording else torch.no_grad()(run)


@dataclass(frozen=True)
class Contest:
    """The same work for two players, who return their results (tensors that carry no graph)."""

    op: str
    problem: Problem
    layout: str
    dtype: torch.dtype
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    reference: Callable[[], Any]  # torch on doubles
    flops: float  # of the direct method
    bytes: float  # fewest possible: every operand once; 0 where nobody counted
    unit: str  # of its rate, by what limits it: GFLOP/s or GB/s
    count: int = 1  # how many layers of a model are this one
    forward: Callable[[], Forward] | None = None  # makes it, for peers beside torch; None in a backward
    extra: Callable[[], dict[str, Any]] | None = None  # what else its row tells


def _value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    numbers = tuple(map(int, text.split("x")))
    return numbers[0] if len(numbers) == 1 else numbers


def parse(text: str, source: str = "") -> Problem:
    """The problem of one line without its op and comment.

    Raises:
        ProblemError: a word is neither a shape nor a setting.

    Example:
        >>> parse("4x64x56x56 64x64x3x3 stride=2").arguments
        {'stride': 2}
    """
    shapes: list[tuple[int, ...]] = []
    arguments = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        try:
            if equals:
                arguments[key] = _value(value)
            else:
                shapes.append(tuple(map(int, word.split("x"))))
        except ValueError:
            rule = f"{key}=INTEGER, such as {key}=2" if equals else "a shape such as 4x64x56x56, or KEY=INTEGER"
            raise ProblemError(f"{word!r} must be {rule}") from None
    if not shapes or any(size < 1 for shape in shapes for size in shape):
        raise ProblemError(f"{text.strip()!r} must start with a shape of sizes of at least 1, such as 4x64x56x56")
    return Problem(tuple(shapes), arguments, source)


def read(path: Path, ops: Collection[str]) -> list[tuple[str, Problem]]:
    """``(op, problem)`` of every line of a file; ``ops`` are the names that may stand first in a line.

    Raises:
        ProblemError: with file and line.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text, _, source = line.partition("#")
        first = next(iter(text.split()), "")
        named = re.match(r"[A-Za-z_]", first) is not None and "=" not in first
        op = first if named else path.stem
        if not first:
            continue
        try:
            if op not in ops:
                start = f"op {op!r}" if named else "the line names no op, nor does the file: the first word"
                raise ProblemError(f"{start} must be of {', '.join(ops)}")
            found.append((op, parse(text.replace(first, "", 1) if named else text, source.strip())))
        except ProblemError as error:
            raise ProblemError(f"{path}:{number}: {error}") from None
    return found


def size(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


def arranged(t: Tensor, layout: str) -> Tensor:
    """The tensor in a layout, where its dimensions have it."""
    return t.contiguous(memory_format=FORMATS[t.dim()]) if layout == "channels_last" and t.dim() in FORMATS else t


def random(shape: tuple[int, ...], dtype: torch.dtype, layout: str, stream: int = 0) -> Tensor:
    """Normal numbers, the same every time; another ``stream`` has others."""
    generator = torch.Generator().manual_seed(len(shape) + 100 * stream)
    return arranged(torch.randn(shape, generator=generator).to(dtype), layout)


def gradient_for(out: Tensor, layout: str) -> Tensor:
    """A gradient of an output: numbers that every dtype has.

    Not those of the input: a norm's gradient by its input is zero where the gradient is a multiple of the input.
    """
    return random(tuple(out.shape), torch.bfloat16, layout, stream=1).to(out.dtype)


def layouts(shape: tuple[int, ...], wanted: list[str]) -> list[str]:
    """Of the wanted layouts those that a tensor of this shape can have."""
    return [name for name in wanted if name == "contiguous" or len(shape) in FORMATS]
