"""What a pass asks when a model is to be trained; `models/training/coach.py` answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .artifact import Artifact
from .task import OnStep

__all__ = ["Coach", "Lesson"]


@dataclass(frozen=True)
class Lesson:
    """One training.

    Attributes:
        task: name of the task whose training step is used.
        start: the model to go on with; None: a new one of the shape that the settings tell.
        teacher: the model to learn from; None: the data alone.
        settings: of the task's training, by `key.path`.
        seed: of data order and noise.
    """

    task: str
    start: Artifact | None = None
    teacher: Artifact | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


class Coach(Protocol):
    """Trains models by their task's own training step."""

    def check(self, lesson: Lesson) -> None:
        """Raise UsageError where the task has no training step or a setting is wrong."""
        ...

    def loss(self, lesson: Lesson) -> Callable[[Any, int], Any]:
        """Return the task's loss of a module on the batch of an index; raises UsageError."""
        ...

    def train(self, lesson: Lesson, folder: Path, on_step: OnStep) -> Artifact:
        """Train to the end, going on from what the folder holds, and return the model.

        Raises:
            UsageError: see `check`.
            StoppedError: interrupted; the next call with the same folder goes on.
            PassError: a loss stopped being finite.
        """
        ...
