"""Whole networks: a training step (forward, loss, backward, SGD) and inference, with the memory that they take.

torch's side trains the model as it is and infers with its own fold (``torch.fx``), convnorm's side trains the converted
model, LeNet-5 with batch norm, ReLU and max pool in one layer, and infers with :func:`convnorm.fuse`, and frozen, as
the runtimes among the peers are, with :func:`convnorm.freeze` after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as torchs_fold
from torch.utils.flop_counter import FlopCounterMode

from .. import models
from .. import nn as convnorm_nn
from ..convert import convert
from ..freeze import freeze
from ..fuse import fuse
from .memory import peak, saved_for_backward
from .problem import Contest, Forward, Problem, random


@dataclass(frozen=True, eq=False)
class TrainingStep(Forward):
    """Forward, loss, backward and an SGD step; gives the scores, without a graph."""

    labels: Tensor = field(kw_only=True)

    def player(self, call: Callable[..., Any]) -> Callable[[], Any]:
        """``call``, which computes what the module does, and the rest of the step."""
        optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-4)  # small: a race has hundreds of steps

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            scores = call(*self.inputs)
            nn.functional.cross_entropy(scores, self.labels).backward()
            optimizer.step()
            return scores.detach()

        return step


@dataclass(frozen=True)
class Network:
    """A network and what is done with it."""

    name: str
    op: str  # training_step or inference
    shape: tuple[int, ...]
    make: Callable[[], nn.Module]
    frozen: bool = False  # convnorm's side keeps its weights packed

    @property
    def text(self) -> str:
        """What a filter sees, as of a layer: op, shape, name."""
        return f"{self.op} {Problem((self.shape,), {}, '')} {self.name}"


NETWORKS = [
    Network("LeNet-5", "training_step", (64, 1, 28, 28), models.LeNet5),
    Network("ResNet-18", "training_step", (8, 3, 128, 128), models.resnet18),
    Network("ResNet-50", "inference", (4, 3, 224, 224), models.resnet50),
    Network("ResNet-50, frozen", "inference", (4, 3, 224, 224), models.resnet50, frozen=True),
    Network("ResNet-50, frozen", "inference", (1, 3, 224, 224), models.resnet50, frozen=True),
]


def _model(network: Network, layout: str, dtype: torch.dtype) -> nn.Module:
    """The model in torch's layers, with the same weights every time; in training mode."""
    torch.manual_seed(0)
    model = network.make().to(dtype)
    return model.to(memory_format=torch.channels_last) if layout == "channels_last" else model  # type: ignore[call-overload]


def _forward(network: Network, model: nn.Module, images: Tensor) -> Forward:
    if network.op == "inference":
        return Forward(model, [images], recording=False)
    return TrainingStep(model, [images], recording=True, trains=True, labels=torch.arange(len(images)) % 10)


def _theirs(network: Network, layout: str, dtype: torch.dtype) -> Forward:
    model = _model(network, layout, dtype)
    model = torchs_fold(model.eval()) if network.op == "inference" else model
    return _forward(network, model, random(network.shape, dtype, layout))


def _ours(network: Network, layout: str, dtype: torch.dtype) -> Forward:
    model, images = _model(network, layout, dtype), random(network.shape, dtype, layout)
    if network.op == "inference":
        model = fuse(model.eval(), images)
        if network.frozen:
            freeze(model)
    elif isinstance(model, models.LeNet5):
        fused = models.LeNet5(convnorm_nn).to(dtype)
        fused.load_state_dict(model.state_dict())
        model = fused
    else:
        convert(model)
    return _forward(network, model, images)


SIDES = {"": _ours, "torch_": _theirs}  # by what their columns begin with


def _player(side: str, network: Network, layout: str, dtype: torch.dtype) -> Callable[[], Any]:
    forward = SIDES[side](network, layout, dtype)
    return forward.player(forward.module)


def _memory(network: Network, layout: str, dtype: torch.dtype) -> dict[str, int | None]:
    """Bytes saved for the backward and resident growth of a process, of both sides."""
    told: dict[str, int | None] = {}
    for side, make in SIDES.items():
        if network.op == "training_step":
            forward = make(network, layout, dtype)
            told[f"{side}saved_bytes"] = saved_for_backward(forward.module, forward.inputs)
        told[f"{side}peak_bytes"] = peak(_player, side, network, layout, dtype)
    return told


def _flops(network: Network) -> float:
    forward = _theirs(network, "contiguous", torch.float32)
    with FlopCounterMode(display=False) as counter:
        forward.player(forward.module)()
    return float(counter.get_total_flops())


def contests(network: Network, layout: str, dtype: torch.dtype) -> Iterator[Contest]:
    """The one contest of a network in one layout."""
    ours, theirs = (_player(side, network, layout, dtype) for side in SIDES)

    def reference() -> Any:
        model = _theirs(network, layout, dtype).module.double()
        forward = _forward(network, model, random(network.shape, dtype, layout).double())
        return forward.player(model)()

    yield Contest(
        network.op,
        Problem((network.shape,), {}, network.name),
        layout,
        dtype,
        ours,
        theirs,
        reference,
        _flops(network),
        0,
        "GFLOP/s",
        forward=lambda: _theirs(network, layout, dtype),
        extra=lambda: _memory(network, layout, dtype),
    )
