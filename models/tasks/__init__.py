"""The tasks of the reference models, found by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from pydantic import ValidationError

from aigc_compress.errors import InputFileError, describe_faults, unknown_name
from aigc_compress.models.own import is_own, own_task
from aigc_compress.models.registry import KINDS
from aigc_compress.task import Task

from .cnn import ClassifyClothes
from .gan import DrawClothes
from .rnn import WriteText

__all__ = ["TASKS", "make_task"]

Sizes = Mapping[str, Mapping[str, Any]]

TASKS: Mapping[str, Callable[[Mapping[str, Any], Sizes], Task]] = {
    "cnn": lambda config, _: ClassifyClothes(config),
    "gan": lambda config, _: DrawClothes(config),
    "rnn": WriteText,
}


def make_task(name: str, config: Mapping[str, Any], sizes: Sizes | None = None) -> Task:
    """Return the task `name` for a model with this config, and what pruning changed of it.

    Raises:
        UsageError: there is no such task.
        InputFileError: the config is not one of this kind of model.
    """
    if is_own(name):
        return cast(Task, own_task(name))
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    try:
        checked = KINDS[name].config.model_validate(dict(config))
    except (ValidationError, TypeError, ValueError) as error:
        raise InputFileError(
            f"The settings do not describe a {name} model: {describe_faults(error)}"
        ) from error
    return TASKS[name](checked.model_dump(), sizes or {})
