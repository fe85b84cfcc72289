"""One OpSpec per op: the description that parity tests, contract tests and benchmarks all read.

A new op is one file in this folder with a module-level ``SPEC``, or ``SPECS`` where a room has several ops; every
generic test then runs on it.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convnorm.testing import assert_accurate

Inputs = dict[str, Any]  # keyword arguments of the op: tensors and plain values
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
LAYOUTS = {"contiguous": {}, "channels_last": {4: torch.channels_last, 5: torch.channels_last_3d}}


@dataclass(frozen=True)
class Case:
    """One problem: why it is here, the shape of each tensor argument, and the plain arguments."""

    reason: str
    shapes: dict[str, tuple[int, ...]]
    kwargs: dict[str, Any] = field(default_factory=dict)
    small: bool = False  # small enough for gradcheck; also what compile, vmap, jvp and the like run on

    def __str__(self) -> str:
        return re.sub(r"\W+", "-", self.reason)

    def layouts(self) -> list[str]:
        """The layouts that this problem can be laid out in: 1d and 2d tensors have no channels_last."""
        return list(LAYOUTS) if len(self.shapes["input"]) >= 4 else ["contiguous"]


def values(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator, kind: str) -> Tensor:
    """Random values, "normal", or "integers" so that sums of products are exact in every order.

    Integers are within 4; in float64 within 2^19: sums stay below 2^53 but are exact in no narrower type.
    """
    if kind == "integers":
        limit = 2**19 if dtype == torch.float64 else 4
        return torch.randint(-limit, limit + 1, tuple(shape), generator=generator).to(dtype)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(dtype)


def arrange(t: Tensor, layout: str) -> Tensor:
    """The tensor in a layout; contiguous where it has too few dimensions for it."""
    return t.contiguous(memory_format=LAYOUTS[layout].get(t.dim(), torch.contiguous_format))


def random_inputs(
    case: Case, dtype: torch.dtype, layout: str = "contiguous", seed: int = 0, kind: str = "normal"
) -> Inputs:
    """Every tensor of the case random and in the layout, then the plain arguments."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: arrange(values(shape, dtype, generator, kind), layout) for name, shape in case.shapes.items()}
    return tensors | case.kwargs


@dataclass(frozen=True)
class OpSpec:
    """An op as tests and benchmarks see it. Inputs travel as keyword arguments: ``spec.ours(**inputs)``."""

    name: str  # the stem of its room
    cases: Sequence[Case]
    ours: Callable[..., Any]  # -> Tensor or tuple of tensors
    theirs: Callable[..., Any]  # torch's own; on doubles it is the reference
    grads: Sequence[str]  # names of the tensor arguments that get gradients
    raw: Callable[..., list[tuple[Any, tuple]]]  # inputs -> (raw op, its arguments), for opcheck
    flops: Callable[[Case], float]  # forward
    bytes: Callable[[Case, int], float]  # (case, itemsize) -> the fewest bytes that forward must move
    exact: bool = False  # integer-valued inputs give torch.equal to torch, forward and gradients
    inputs: Callable[..., Inputs] = random_inputs  # (case, dtype, layout, seed, kind)
    vmap: Callable[[Case], bool] = lambda case: True  # False where torch's own op cannot be mapped

    def __str__(self) -> str:
        return self.name


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same inputs with every floating tensor in another dtype."""
    return {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def outputs_of(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def evaluate(
    function: Callable[..., Any], inputs: Inputs, grads: Sequence[str], seed: int = 1, kind: str = "normal"
) -> dict[str, Tensor]:
    """Runs forward and backward: ``{"output 0": ..., "grad_input": ...}``.

    The outputs' gradients are drawn from the seed in bfloat16, so that every dtype gets the same values.
    """
    leaves = {name: inputs[name].detach().requires_grad_() for name in grads if inputs.get(name) is not None}
    outputs = outputs_of(function(**(inputs | leaves)))
    named = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    differentiable = [o for o in outputs if o.requires_grad]
    if differentiable:
        generator = torch.Generator().manual_seed(seed)
        drawn = [values(o.shape, torch.bfloat16, generator, kind) for o in differentiable]
        drawn = [torch.empty_like(o).copy_(d) for o, d in zip(differentiable, drawn, strict=True)]
        found = torch.autograd.grad(differentiable, list(leaves.values()), drawn)
        named |= {f"grad_{name}": g for name, g in zip(leaves, found, strict=True)}
    return named


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """torch's convolutions by its own im2col: on odd grouped geometries oneDNN's crash now and then (torch 2.13)."""
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


def torch_results(
    spec: OpSpec, inputs: Inputs, dtype: torch.dtype, kind: str = "normal"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """torch's results, whose error is the measure, and its float64 ones, the reference.

    For float64 the measure is torch's error in float32, of the same algorithm as the reference: without oneDNN, which
    has no float64. float16 is without it too: its depthwise kernels for AVX-512 hang on long windows (torch 2.13).
    """
    peer = cast(inputs, torch.float32) if dtype == torch.float64 else inputs
    with without_onednn() if dtype in (torch.float64, torch.float16) else contextlib.nullcontext():
        theirs = evaluate(spec.theirs, peer, spec.grads, kind=kind)
    return theirs, evaluate(spec.theirs, cast(inputs, torch.float64), spec.grads, kind=kind)


def compare(spec: OpSpec, inputs: Inputs, dtype: torch.dtype, kind: str = "normal") -> None:
    """Level 2 for forward and gradients."""
    ours = evaluate(spec.ours, inputs, spec.grads, kind=kind)
    theirs, reference = torch_results(spec, inputs, dtype, kind)
    assert ours.keys() == reference.keys()
    for what in ours:
        assert_accurate(ours[what], theirs[what], reference[what], what)


def all_specs() -> list[OpSpec]:
    """The SPEC, or all SPECS, of every file in this folder, by name of the file."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [spec for module in modules for spec in getattr(module, "SPECS", [module.SPEC])]
