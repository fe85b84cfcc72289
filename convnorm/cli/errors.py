"""The error of a command, and finding the model that a command is about."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

import torch


class CommandError(Exception):
    """A command cannot do what was asked; its text is the whole message."""


def load_model(where: str) -> torch.nn.Module:
    """A module from ``package.module:name``, where name is a module or makes one when called without arguments.

    The current folder is searched too.

    Raises:
        CommandError: with what is wrong: the form, the import, the name, the call, or what it gave.
    """
    module, colon, name = where.partition(":")
    if not (module and colon and name):
        raise CommandError(f"{where!r} must be MODULE:NAME, such as convnorm.models:LeNet5")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise CommandError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            hint = f"; is {near[0]} meant?" if near else ""
            raise CommandError(f"{module} has no attribute {part!r}{hint}")
        found = getattr(found, part)
    if not isinstance(found, torch.nn.Module) and not callable(found):
        raise CommandError(f"{where} is a {type(found).__name__}, must be a torch.nn.Module or make one")
    try:
        model = found if isinstance(found, torch.nn.Module) else found()
    except Exception as error:
        raise CommandError(f"{where}() must make a model when called without arguments, "
                           f"but raised {type(error).__name__}: {error}") from error  # fmt: skip
    if not isinstance(model, torch.nn.Module):
        raise CommandError(f"{where} gave a {type(model).__name__}, must be a torch.nn.Module")
    return model


def first_line(error: Exception) -> str:
    """The class of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
