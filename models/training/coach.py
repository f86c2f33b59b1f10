"""Trains models by their tasks for the passes that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aigc_compress.artifact import Artifact, ModelSpec, Step
from aigc_compress.coach import Lesson
from aigc_compress.errors import UsageError
from aigc_compress.models.own import is_own, own_task
from aigc_compress.models.registry import KINDS, build_module
from aigc_compress.task import OnStep

from .base import Trainer, TrainingConfig, seeded
from .loop import Progress, RunOptions, run_training
from .own import OwnTrainer, OwnTraining
from .run import (
    TRAININGS,
    checked_settings,
    choose_device,
    load_training_config,
    make_trainer,
)

__all__ = ["TaskCoach"]


class TaskCoach:
    """Trains by the steps of `gan`, `cnn` and `rnn`, and of a user's tasks that have a loss."""

    def __init__(
        self,
        *,
        device: str = "auto",
        images: Path | None = None,
        checkpoint_minutes: float = 5.0,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Prepare.

        Args:
            device: auto, cpu or cuda.
            images: folder with the training images; None: found or downloaded.
            checkpoint_minutes: minutes between checkpoints.
            on_progress: told losses and validations.
        """
        self._device, self._images = device, images
        self._minutes, self._on_progress = checkpoint_minutes, on_progress

    def check(self, lesson: Lesson) -> None:
        """Raise UsageError where the task has no training step or a setting is wrong."""
        settings, teacher = self._settings(lesson), lesson.teacher
        if is_own(lesson.task):
            if lesson.start is None:
                raise UsageError(
                    "A student of your own model is made by pruning it, or named as the `model`:"
                    " `student` is for the reference models alone."
                )
            return
        if teacher is None or teacher.spec is None or lesson.start is not None:
            return
        shape = settings.model.model_dump()  # type: ignore[attr-defined]
        kind = KINDS[lesson.task]
        student = kind.module(kind.config.model_validate({**teacher.spec.config, **shape}))
        sizes = [sum(p.numel() for p in each.parameters()) for each in (student, teacher.payload)]
        if sizes[0] > sizes[1]:
            raise UsageError(
                f"The student has {sizes[0]:,} parameters, more than its teacher's {sizes[1]:,}."
                " Give distill a smaller `student`."
            )

    def train(self, lesson: Lesson, folder: Path, on_step: OnStep) -> Artifact:
        """Train to the end, going on from what the folder holds; see `Coach`."""

        def report(news: Progress) -> None:
            on_step(news.done, news.total)
            if self._on_progress is not None:
                self._on_progress(news)

        trainer = self._trainer(lesson, on_step)
        options = RunOptions(folder, self._minutes)
        run_training(trainer, options, on_progress=report)
        made = trainer.checkpoint()
        validation = trainer.evaluate("validation", trainer.config.validation_samples)
        numbers = {"validation": asdict(validation)}  # no times: a rerun ends in the same file
        step = Step("train", trainer.config.model_dump(mode="json"), lesson.seed, numbers)
        spec = ModelSpec(made.model, made.config, made.sizes)
        module = build_module(spec.name, spec.config, made.state_dict, spec.sizes)
        return Artifact("torch", module, spec, made.task, (step,), None, made.companions)

    def loss(self, lesson: Lesson) -> Callable[[Any, int], Any]:
        """Return the task's loss of a module on the batch of an index; raises UsageError."""
        trainer = self._trainer(lesson, lambda _done, _total: None)

        def loss(module: Any, index: int) -> Any:
            with seeded(lesson.seed, index + 1):
                return trainer.loss_of(module, index)

        return loss

    def _trainer(self, lesson: Lesson, on_step: OnStep) -> Trainer:
        settings = self._settings(lesson)
        if isinstance(settings, OwnTraining):
            assert lesson.start is not None
            return OwnTrainer(
                own_task(lesson.task),
                settings,
                device=choose_device(self._device),
                start=lesson.start,
                teacher=lesson.teacher,
            )
        return make_trainer(
            lesson.task,
            settings,
            device=self._device,
            images=self._images,
            start=lesson.start,
            teacher=lesson.teacher,
            on_download=on_step,
        )

    def _settings(self, lesson: Lesson) -> TrainingConfig:
        values = {"seed": lesson.seed, **lesson.settings}
        if is_own(lesson.task):
            task = own_task(lesson.task)
            missing = [e for e in ("batch", "inputs", "loss") if not hasattr(task, e)]
            if missing:
                raise UsageError(
                    f"The task {lesson.task} has no training step: it has no"
                    f" {', '.join(missing)}. See `aigc_compress.task.Trainable`."
                )
            return checked_settings(OwnTraining, {}, values)
        if lesson.task not in TRAININGS:
            known = ", ".join(TRAININGS)
            raise UsageError(f"The task {lesson.task} has no training step; {known} have one.")
        return load_training_config(lesson.task, None, values)
