"""The shared base of every autograd wrapper: cheap to call in eager mode, complete under torch's transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.autograd import forward_ad

# Looked up once: every call asks.
is_compiling, is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
# True inside torch.func (vmap, grad, jvp ...), where a Function must go the long way.
transforms_active = torch._C._are_functorch_transforms_active


def recording_eagerly() -> bool:
    """True where a plain backward is all that can be asked for: gradients are recorded, and nothing looks inside."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return torch.is_grad_enabled() and not transforms_active() and forward_ad._current_level < 0


def derivative_wanted(input: torch.Tensor) -> bool:
    """True when something may later ask for a derivative with respect to input; never in an exported program."""
    if torch.compiler.is_exporting():
        return False
    if torch.is_grad_enabled() and input.requires_grad:
        return True
    return not torch.compiler.is_compiling() and (transforms_active() or forward_ad._current_level >= 0)


def any_requires_grad(args: tuple[Any, ...]) -> bool:
    """Whether one of the arguments is a tensor that requires gradients."""
    for arg in args:  # noqa: SIM110 - any() of a generator takes three times as long
        if isinstance(arg, torch.Tensor) and arg.requires_grad:
            return True
    return False


class Function(torch.autograd.Function):
    """``setup_context``-style autograd.Function around an opaque op.

    A subclass defines the static methods ``forward``, ``setup_context``, ``backward`` and ``vmap``. Its forward-mode
    rule lives in a second class, named by ``eager``, because Dynamo refuses a Function that has a ``jvp``.
    Call through :meth:`call`.
    """

    eager: ClassVar[type[Function] | None] = None
    _record: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        # torch's own apply binds arguments through inspect.signature (30 us) before it comes to this one.
        cls._record = super(torch.autograd.Function, cls).apply  # type: ignore[misc]

    @classmethod
    def call(cls, *args: Any) -> Any:
        """The op itself where nothing is recorded, else the Function that records."""
        if not (is_grad_enabled() or transforms_active() or forward_ad._current_level >= 0):
            return cls.forward(*args)  # first, as every ordinary backward comes here
        if is_compiling():
            if torch.compiler.is_dynamo_compiling() and torch.compiler.is_exporting():
                return cls.forward(*args)  # strict export: the op alone, as in the other export mode
            return cls.apply(*args)
        if transforms_active():
            return (cls.eager or cls).apply(*args)
        if forward_ad._current_level < 0 and not (is_grad_enabled() and any_requires_grad(args)):
            return cls.forward(*args)
        return (cls.eager or cls)._record(*args)


def share_names() -> None:
    """Profilers and ``grad_fn`` show a Function's class: what is ``_ConvEager`` in the code is ``Conv`` there."""
    for plain in Function.__subclasses__():
        if plain.eager is not None:
            plain.eager.__name__ = plain.__name__
            plain.eager._backward_cls.__name__ = f"{plain.__name__}Backward"


def move_batch(x: torch.Tensor | None, dim: int | None, size: int) -> torch.Tensor | None:
    """For vmap rules: the mapped dimension in front, added by expansion where the tensor is not mapped."""
    if x is None:
        return None
    return x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
