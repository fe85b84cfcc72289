"""Docstrings of convnorm in the words of mkdocstrings: Sphinx's roles become links, and "Example:" a section."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Class, Extension, Function, Object

TOPICS = ("convnorm.functional", "convnorm.nn", "convnorm.analysis", "convnorm.models")


class Docstrings(Extension):
    """Links to what is on no page, torch's names for one, are plain text."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = re.sub(r":\w+:`~?([^`]+)`", lambda m: link(m[1], obj.module.path), text)

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Fields of a dataclass as a list, told by the comments behind them."""
        if cls.docstring and any(str(decorator.value).startswith("dataclass") for decorator in cls.decorators):
            fields = [f"    {name}: {comment(cls, a)}" for name, a in cls.attributes.items() if a.annotation]
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(fields)

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Private names of types, such as ``_Size``, as what they stand for."""
        names = {name: str(a.value) for name, a in func.module.attributes.items() if name[0] == "_" and a.value}
        for parameter in func.parameters:
            written = str(parameter.annotation)
            known = re.sub(r"\b_\w+\b", lambda m: names.get(m[0], m[0]), written)
            if known != written:
                parameter.annotation = known.replace(" | None | None", " | None")


def comment(cls: Class, field: Attribute) -> str:
    assert field.lineno
    line = cls.lines_collection[cls.filepath][field.lineno - 1]
    return line.partition("  # ")[2] or "\u200b"


def link(name: str, module: str) -> str:
    """``conv2d`` in convnorm.functional.conv is on the page of convnorm.functional, under that name."""
    place = next((topic for topic in TOPICS if module.startswith(topic)), module)
    path = name if name.split(".")[0] in ("convnorm", "torch") else f"{place}.{name}"
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
