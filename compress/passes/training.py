"""Training as passes: `finetune` goes on with a model, `distill` lets it follow a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.coach import Coach, Lesson
from aigc_compress.errors import UsageError

from .base import Context

__all__ = ["DistillConfig", "DistillPass", "FinetuneConfig", "FinetunePass"]


class FinetuneConfig(BaseModel):
    """Settings of a training on the task's own data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of the task's training, such as steps and learning_rate",
    )


class DistillConfig(FinetuneConfig):
    """Settings of a training with a teacher."""

    student: dict[str, Any] | None = Field(
        default=None, description="shape of a new model to train; none: the model itself goes on"
    )


class FinetunePass:
    """Train the model on."""

    name = "finetune"
    config = FinetuneConfig

    def check(self, artifact: Artifact, config: FinetuneConfig, context: Context) -> None:
        """Raise UsageError where the task has no training step, or a setting is wrong."""
        _coach(self.name, context)[0].check(self._lesson(artifact, config, context))

    def run(self, artifact: Artifact, config: FinetuneConfig, context: Context) -> Artifact:
        """Return the trained model.

        Raises:
            UsageError: see `check`.
            StoppedError: interrupted; the same run goes on.
        """
        coach, folder = _coach(self.name, context)
        lesson = self._lesson(artifact, config, context)
        coach.check(lesson)
        made = coach.train(lesson, folder, context.on_step)
        numbers = made.history[-1].numbers
        step = Step(self.name, config.model_dump(mode="json"), context.seed, numbers)
        history = (*artifact.history, step)
        return replace(made, history=history, source_sha256=artifact.source_sha256)

    def _lesson(self, artifact: Artifact, config: FinetuneConfig, context: Context) -> Lesson:
        return Lesson(_task(artifact), artifact, None, config.settings, context.seed)


class DistillPass(FinetunePass):
    """Train the model, or a new and smaller one, to follow the model that the line began with."""

    name = "distill"
    config = DistillConfig

    def _lesson(self, artifact: Artifact, config: FinetuneConfig, context: Context) -> Lesson:
        assert isinstance(config, DistillConfig)
        teacher = context.source or artifact
        shape = {f"model.{key}": value for key, value in (config.student or {}).items()}
        start = artifact if config.student is None else None
        settings = {**shape, **config.settings}
        return Lesson(_task(artifact), start, teacher, settings, context.seed)


def _task(artifact: Artifact) -> str:
    if artifact.task is None:
        raise UsageError("This model has no task, so there is no training step for it.")
    return artifact.task


def _coach(name: str, context: Context) -> tuple[Coach, Path]:
    if context.coach is None or context.folder is None:
        raise UsageError(f"{name} trains a model, which needs a folder for its state: use `run`.")
    return context.coach, context.folder
