"""The tasks of the reference models, found by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aigc_compress.errors import unknown_name
from aigc_compress.task import Task

from .cnn import ClassifyClothes
from .gan import DrawClothes
from .rnn import WriteText

__all__ = ["TASKS", "make_task"]

TASKS: Mapping[str, Callable[[Mapping[str, Any]], Task]] = {
    "cnn": ClassifyClothes,
    "gan": DrawClothes,
    "rnn": WriteText,
}


def make_task(name: str, config: Mapping[str, Any]) -> Task:
    """Return the task `name` for a model with this config; raises UsageError for other names."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name](config)
