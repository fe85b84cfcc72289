"""Receptive fields, followed along the data flow of a model.

A layer with a window of K positions, dilation D and stride S turns (field, jump) into
(field + D*(K-1)*jump, jump*S): jump is the distance, in pixels of the input, between neighbours of a feature map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..nn.norm_pooling import _BatchNormActMaxPool

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, _BatchNormActMaxPool,
)  # fmt: skip
_ADAPTIVE = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_RESIZING = (
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.Fold, nn.Unfold, nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d,
)  # fmt: skip
_MIXING = (nn.RNNBase, nn.MultiheadAttention)  # a position sees others far away


def _of_convolution(args: Any) -> tuple[Any, Any, Any]:
    return args[1].shape[2:], args[3], args[5]


def _of_conv_act(args: Any) -> tuple[Any, Any, Any]:
    return args[1].shape[2:], args[4], args[6]


def _of_pooling(args: Any) -> tuple[Any, Any, Any]:
    return args[1], args[2] if len(args) > 2 else (), args[4] if len(args) > 4 else (1,)


# Operations with a window: (kernel, stride, dilation) of their arguments.
_WINDOWS = {"aten::convolution": _of_convolution, "convnorm::conv_forward": _of_convolution,
            "convnorm::conv_act": _of_conv_act,
            "aten::max_pool2d_with_indices": _of_pooling, "aten::max_pool3d_with_indices": _of_pooling,
            "aten::avg_pool2d": lambda args: (*_of_pooling(args)[:2], (1,)),
            "aten::avg_pool3d": lambda args: (*_of_pooling(args)[:2], (1,))}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """What one position of a feature map sees of the input, per spatial dimension."""

    field: tuple[int, ...]
    jump: tuple[int, ...]

    def through(self, window: tuple[int, ...], stride: tuple[int, ...]) -> Field:
        """The field after a layer whose (dilated) window and stride are these."""
        return Field(
            tuple(f + (k - 1) * j for f, k, j in zip(self.field, window, self.jump, strict=True)),
            tuple(j * s for j, s in zip(self.jump, stride, strict=True)),
        )


def ntuple(value: Any, n: int) -> tuple[int, ...]:
    """An int as n of them; a sequence as it is."""
    return (value,) * n if isinstance(value, int) else tuple(value)


def window(module: nn.Module, n: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(dilated window, stride) of a convolution or pooling layer with n spatial dimensions, else None."""
    if not isinstance(module, _CONVS + _POOLS):
        return None
    kernel, stride = ntuple(module.kernel_size, n), ntuple(module.stride, n)
    dilation = ntuple(getattr(module, "dilation", 1), n)
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)), stride


class FieldTracker(TorchDispatchMode):
    """Carries a Field from tensor to tensor through every operation; layers with windows are told by their hooks."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.known: dict[int, Field | None] = {}
        self.alive: list[Tensor] = []  # keeps the ids from being used again
        self.size: tuple[int, ...] = tuple(inputs[0].shape[2:]) if inputs else ()
        for t in inputs:
            n = t.dim() - 2
            self.put(t, Field((1,) * n, (1,) * n) if n > 0 else None)

    def put(self, tensor: Tensor, field: Field | None) -> None:
        """State the field of a tensor."""
        self.known[id(tensor)] = field
        self.alive.append(tensor)

    def get(self, tensor: Tensor) -> Field | None:
        """The field of a tensor; None when it is not known."""
        return self.known.get(id(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sources = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and id(t) in self.known]
        if sources:
            field = self._widest([self.known[id(t)] for t in sources])
            if field is not None and func._schema.name in _WINDOWS:
                field = self._windowed(func, field, args)
            for t in tree_leaves(out):
                if isinstance(t, Tensor):
                    self.put(t, field)
        return out

    @staticmethod
    def _windowed(func: Any, before: Field, args: tuple[Any, ...]) -> Field | None:
        """Through a convolution or pooling that no layer stands for; None where it has other dimensions."""
        n = len(before.field)
        transposed = func._schema.name == "aten::convolution" and args[6]
        kernel, stride, dilation = _WINDOWS[func._schema.name](args)
        if transposed or len(kernel) != n:
            return None
        stride, dilation = (ntuple(v[0] if len(v) == 1 else v, n) for v in (stride or kernel, dilation))
        return before.through(tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)), stride)

    @staticmethod
    def _widest(fields: list[Field | None]) -> Field | None:
        first, *rest = fields
        for other in rest:
            if first is None or other is None or len(first.field) != len(other.field):
                return None
            first = Field(tuple(map(max, first.field, other.field)), tuple(map(max, first.jump, other.jump)))
        return first

    def layer(self, module: nn.Module, input: Tensor, output: Tensor) -> tuple[Field | None, tuple[int, ...] | None]:
        """(field of the output in the input, field in the previous layer), which is also recorded."""
        after, previous = self._rule(module, self.get(input), input, output)
        self.put(output, after)
        return after, previous

    def _rule(self, module: nn.Module, before: Field | None, input: Tensor,
              output: Tensor) -> tuple[Field | None, tuple[int, ...] | None]:
        n = len(self.size)
        if before is None or n == 0:
            return None, None
        if (found := window(module, n)) is not None:
            return before.through(*found), found[0]
        whole_map = isinstance(module, _ADAPTIVE) and all(s == 1 for s in output.shape[2:])
        if whole_map or (isinstance(module, nn.Linear) and input.dim() == 2):
            previous = tuple(input.shape[2:]) if whole_map else ()
            return Field(self.size, self.size), previous
        if isinstance(module, _ADAPTIVE + _RESIZING + _MIXING):
            return None, None
        after = self.get(output)  # what the operations inside did
        if after is None or len(after.field) != n:
            return None, None
        steps = zip(after.field, before.field, before.jump, strict=True)
        return after, tuple((a - b) // j + 1 for a, b, j in steps)
