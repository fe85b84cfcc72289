"""FLOPs of the convolution ops, for torch.utils.flop_counter and explain: 2 per multiply-add of the direct method.

The three sides of a convolution multiply the same pairs: every weight with one input position per output position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula


def _direct(weight_size: Any, output_size: Any) -> int:
    batch, _, *positions = output_size
    return 2 * batch * math.prod(weight_size) * math.prod(positions)


@register_flop_formula([torch.ops.convnorm.conv_forward, torch.ops.convnorm.conv_act])
def _(input_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _direct(weight_shape, out_shape)


@register_flop_formula(torch.ops.convnorm.conv_by_input)
def _(grad_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    return _direct(weight_shape, grad_shape)


@register_flop_formula(torch.ops.convnorm.conv_by_weight)
def _(grad_shape: Any, input_shape: Any, weight_size: Any, *_: Any, **__: Any) -> int:
    return _direct(weight_size, grad_shape)


def flops(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int | None:
    """FLOPs of one call of an op (an OpOverload); None where it has no formula."""
    formula = flop_registry.get(op.overloadpacket)
    return None if formula is None else int(formula(*args, **kwargs, out_val=out))
