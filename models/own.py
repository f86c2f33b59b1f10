"""A user's own models and tasks, named as `package.module:attribute`.

Files may name them too, and importing runs code: so only what the user names in this run is
imported, never what a file alone names.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

from aigc_compress.errors import InputFileError, UsageError, first_line

if TYPE_CHECKING:
    from torch import nn

__all__ = ["allow", "build_own", "is_allowed", "is_own", "load_own", "own_task"]

_allowed: set[str] = set()
TASK_MEMBERS = ("feeds", "dynamic_axes", "calibration", "evaluate", "exhibit")


def is_own(name: str) -> bool:
    """Whether a name is one of a user's own code."""
    module, sign, attribute = name.partition(":")
    return bool(sign) and all(
        part.isidentifier() for part in [*module.split("."), *attribute.split(".")]
    )


def allow(name: str) -> None:
    """Let this name be imported, because the user said it."""
    _allowed.add(name)


def is_allowed(name: str) -> bool:
    """Whether the user named it."""
    return name in _allowed


def load_own(name: str) -> Any:
    """Import what a name stands for; the current folder is searched too.

    Raises:
        UsageError: it was not allowed, or is not there.
    """
    if name not in _allowed:
        raise UsageError(
            f"The file names {name}, and importing that would run its code. If you trust it, name"
            f" it yourself: --task {name}, or as the model."
        )
    path, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(path)
        for each in attribute.split("."):
            found = getattr(found, each)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UsageError(f"Cannot import {name}: {first_line(error)}") from error
    return found


def build_own(name: str, config: dict[str, Any]) -> nn.Module:
    """Call a user's factory; inputs are named by its forward where it does not name them.

    Raises:
        UsageError: it cannot be imported.
        InputFileError: it does not take this config, or does not return a module.
    """
    from torch import nn

    factory = load_own(name)
    try:
        module = factory(**config)
    except TypeError as error:
        raise InputFileError(f"{name} does not take {config}: {first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputFileError(f"{name} returns a {type(module).__name__}, not an nn.Module.")
    if not hasattr(module, "input_names"):
        setattr(module, "input_names", tuple(inspect.signature(module.forward).parameters))  # noqa: B010
    if not hasattr(module, "output_names"):
        setattr(module, "output_names", ("output",))  # noqa: B010
    return module


def own_task(name: str) -> Any:
    """Return a user's task: an object, or a class or function that is called without arguments.

    Raises:
        UsageError: it cannot be imported, or lacks a member of a task.
    """
    task = load_own(name)
    if callable(task):
        task = task()
    missing = [each for each in TASK_MEMBERS if not hasattr(task, each)]
    if missing:
        raise UsageError(f"{name} is no task: it has no {', '.join(missing)}.")
    return task
