"""Training one network, and what is compared between two: gradients, speed, time per layer."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Split
from ..models import LeNet5


@dataclass(frozen=True)
class Options:
    """The command line of the demo."""

    epochs: int = 10
    seed: int = 0
    batch_size: int = 64
    lr: float = 0.02
    plain: bool = False
    channels_last: bool = False
    threads: int | None = None
    limit: int | None = None
    out: str = "demo_output/lenet.png"


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training set gave."""

    loss: float
    accuracy: float  # on the test set, 0 to 1
    seconds: float  # training only


class Trainer:
    """One network, its optimizer and its history. The same seed gives the same start for every ``layers``."""

    def __init__(self, name: str, layers: Any, data: Split, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.name, self.options = name, options
        self.format = torch.channels_last if options.channels_last else torch.contiguous_format
        self.net = LeNet5(layers, norm=not options.plain).to(memory_format=self.format)  # type: ignore[call-overload]
        self.data = data
        steps = options.epochs * -(-len(data.train_labels) // options.batch_size)
        self.optimizer = torch.optim.SGD(self.net.parameters(), options.lr, 0.9, weight_decay=5e-3, nesterov=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.history: list[Epoch] = []
        self.first_gradients: dict[str, Tensor] = {}

    def epoch(self, order: Tensor) -> None:
        """Train on all images in this order, then measure the accuracy on the test set."""
        self.net.train()
        start, loss_sum = time.perf_counter(), torch.zeros(())
        for picked in order.split(self.options.batch_size):
            loss_sum += self._step(picked) * len(picked)
        seconds = time.perf_counter() - start
        self.history.append(Epoch(loss_sum.item() / len(order), self.accuracy(), seconds))

    def exact_gradients(self, picked: Tensor) -> dict[str, Tensor]:
        """Gradients of the present weights on one batch, in float64; the network is not changed."""
        net = deepcopy(self.net).double().train()
        loss = F.cross_entropy(net(self.data.train_images[picked].double()), self.data.train_labels[picked])
        names, parameters = zip(*net.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    def _step(self, picked: Tensor) -> Tensor:
        images = self.data.train_images[picked].contiguous(memory_format=self.format)
        loss = F.cross_entropy(self.net(images), self.data.train_labels[picked])
        self.optimizer.zero_grad()
        loss.backward()
        if not self.first_gradients:
            named = self.net.named_parameters()
            self.first_gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def accuracy(self) -> float:
        """The fraction of test images that are classified correctly."""
        self.net.eval()
        with torch.inference_mode():
            parts = self.data.test_images.contiguous(memory_format=self.format).split(250)
            guesses = torch.cat([self.net(part).argmax(1) for part in parts])
        return (guesses == self.data.test_labels).float().mean().item()

    @property
    def images_per_second(self) -> float:
        """Training speed, median over the epochs."""
        return len(self.data.train_labels) / median(epoch.seconds for epoch in self.history)


@dataclass(frozen=True)
class GradientGap:
    """The largest difference between two sets of gradients."""

    absolute: float
    relative: float  # to the largest gradient of all
    where: str


def gradient_gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> GradientGap:
    """Compare two sets of gradients by name."""
    gaps = {name: (g.double() - b[name].double()).abs().max().item() for name, g in a.items()}
    largest = max(g.abs().max().item() for g in a.values())
    where = max(gaps, key=lambda name: gaps[name])
    return GradientGap(gaps[where], gaps[where] / largest, where)


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of one layer on one batch."""

    label: str
    forward: float
    backward: float


def _stages(net: LeNet5) -> list[tuple[str, nn.Sequential]]:
    """The layers in the order they run; batch norm, ReLU and max pooling are one stage, as is the linear part."""
    layers = dict(net.named_children())
    stages: list[tuple[str, list[str]]] = []
    for i in "12":
        after = [name for name in (f"bn{i}", f"relu{i}", f"pool{i}") if name in layers]
        label = f"bn{i} + relu + pool" if f"bn{i}" in layers else f"relu{i} + pool"
        stages += [(f"conv{i}", [f"conv{i}"]), (label, after)]
    stages.append(("linear", ["flatten", "fc1", "relu3", "fc2"]))
    return [(label, nn.Sequential(*(layers[name] for name in names))) for label, names in stages]


def _time_once(stages: list[tuple[str, nn.Sequential]], images: Tensor, times: list[list[tuple[float, float]]]) -> None:
    x = images
    for (_, stage), record in zip(stages, times, strict=True):
        t0 = time.perf_counter()
        out = stage(x)
        t1 = time.perf_counter()
        wanted = [t for t in (x, *stage.parameters()) if t.requires_grad]  # the images need no gradient
        grad = torch.ones_like(out)
        t2 = time.perf_counter()
        torch.autograd.grad(out, wanted, grad)
        record.append((t1 - t0, time.perf_counter() - t2))
        x = out.detach().requires_grad_()


def layer_times(trainers: list[Trainer], rounds: int) -> list[list[LayerTime]]:
    """Per network the time of each layer on one training batch, the networks taking turns; medians of ``rounds``."""
    nets = [_stages(deepcopy(trainer.net).train()) for trainer in trainers]
    times: list[list[list[tuple[float, float]]]] = [[[] for _ in net] for net in nets]
    first = trainers[0]
    images = first.data.train_images[: first.options.batch_size].contiguous(memory_format=first.format)
    for _ in range(rounds):
        for net, records in zip(nets, times, strict=True):
            _time_once(net, images, records)
    return [
        [
            LayerTime(label, 1e3 * median(f for f, _ in record), 1e3 * median(b for _, b in record))
            for (label, _), record in zip(net, records, strict=True)
        ]
        for net, records in zip(nets, times, strict=True)
    ]
