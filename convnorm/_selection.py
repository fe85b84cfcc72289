"""Choosing layers of a model by name, type or predicate, for `convert` and `fold`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn

Selector = str | type | Callable[[str, nn.Module], bool]
Selectors = Selector | Iterable[Selector]


def names_of(model: nn.Module) -> dict[int, tuple[nn.Module, list[str]]]:
    """Every module once, with all its dotted names (a shared one has several)."""
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), (module, []))[1].append(name)
    return found


class Selection:
    """Names (with globs; a match takes in what is inside), types and predicates."""

    def __init__(self, caller: str, argument: str, selectors: Selectors) -> None:
        single = isinstance(selectors, (str, type)) or callable(selectors)
        self.caller, self.argument = caller, argument
        self.items: list[Selector] = [selectors] if single else list(selectors)  # type: ignore[list-item,arg-type]
        for item in self.items:
            if not isinstance(item, (str, type)) and not callable(item):
                raise TypeError(f"{caller}: {argument} {item!r} must be a name, a type or a predicate (name, module)")
        self.unused = {item for item in self.items if isinstance(item, str)}

    def has(self, module: nn.Module, names: list[str]) -> bool:
        hits = [item for item in self.items if self._hit(item, module, names)]
        self.unused.difference_update(item for item in hits if isinstance(item, str))
        return bool(hits)

    def _hit(self, item: Selector, module: nn.Module, names: list[str]) -> bool:
        if isinstance(item, type):
            return isinstance(module, item)
        if isinstance(item, str):
            return any(fnmatchcase(name, item) or fnmatchcase(name, f"{item}.*") for name in names)
        return any(item(name, module) for name in names)

    def check_used(self) -> None:
        if self.unused:
            raise ValueError(f"{self.caller}: {self.argument} {sorted(self.unused)} matches no module of this model")
