"""Activations and residuals that a convolution takes in: ConvAct in the place of one of the modules, in place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..nn import Conv1d, Conv2d, Conv3d, ConvAct1d, ConvAct2d, ConvAct3d

FUSED: dict[type, type] = {Conv1d: ConvAct1d, Conv2d: ConvAct2d, Conv3d: ConvAct3d}


def become(module: nn.Module, kind: type[nn.Module], state: dict[str, Any]) -> None:
    """Change a module's class and attributes, so that every reference to it sees the change."""
    module.__class__ = kind
    vars(module).clear()
    vars(module).update(state)


def restoring(*modules: nn.Module) -> Callable[[], None]:
    """What makes modules again what they are now."""
    states = [(m, type(m), dict(vars(m)), dict(m._parameters)) for m in modules]

    def undo() -> None:
        for module, kind, state, parameters in states:
            become(module, kind, state)
            module._parameters.clear()
            module._parameters.update(parameters)

    return undo


def fuse_act(conv: nn.Module, act: str | None) -> None:
    """Make a convolution of convnorm.nn the one that ends in an activation."""
    conv.__class__ = FUSED[type(conv)]
    conv.act = act  # type: ignore[assignment]


def take_place(module: nn.Module, conv: nn.Module, act: str | None) -> None:
    """Let ``module`` compute the convolution, with the residual that it is called with; ``conv`` passes its input on.

    Its attributes stay (a forward may read them), its parameters move.
    """
    state = {key: copy.copy(value) if isinstance(value, (dict, set)) else value for key, value in vars(conv).items()}
    become(module, FUSED[type(conv)], {**state, "act": act})
    become(conv, nn.Identity, {**vars(conv), "_parameters": {}})


@dataclass(frozen=True)
class Activation:
    """What fusing one ReLU changes, by names."""

    conv: str
    relu: str

    def carry_out(self, model: nn.Module) -> Callable[[], None]:
        """The convolution ends in ReLU, and the module becomes an identity; returns what undoes that."""
        conv, relu = model.get_submodule(self.conv), model.get_submodule(self.relu)
        undo = restoring(conv, relu)
        fuse_act(conv, "relu")
        become(relu, nn.Identity, vars(nn.Identity().eval()))
        return undo
