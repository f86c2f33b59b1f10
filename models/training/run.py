"""From a configuration to a finished checkpoint and its card."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from pydantic import BaseModel, ValidationError

from aigc_compress.artifact import Artifact
from aigc_compress.checkpoint import write_checkpoint
from aigc_compress.errors import (
    InputFileError,
    NotOnThisMachineError,
    UsageError,
    describe_faults,
    unknown_name,
)
from aigc_compress.loading import load_artifact
from aigc_compress.machine import cpu_name
from aigc_compress.models import data
from aigc_compress.storage import digest_file, write_bytes

from .base import Trainer, TrainingConfig
from .cnn import CnnTrainer, CnnTraining
from .gan import GanTrainer, GanTraining
from .loop import Progress, RunOptions, run_training
from .rnn import RnnTrainer, RnnTraining

__all__ = [
    "TRAININGS",
    "checked_settings",
    "choose_device",
    "load_training_config",
    "make_trainer",
    "train_reference",
]


class Training(NamedTuple):
    """One trainable reference: its settings, its trainer, and whether it needs the images."""

    config: type[TrainingConfig]
    trainer: Callable[..., Trainer]
    needs_images: bool


TRAININGS: Mapping[str, Training] = {
    "cnn": Training(CnnTraining, CnnTrainer, True),
    "gan": Training(GanTraining, GanTrainer, True),
    "rnn": Training(RnnTraining, RnnTrainer, False),
}


def load_training_config(
    name: str, file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """Build the settings of a training from defaults, a YAML file and `key.path` overrides.

    Raises:
        UsageError: an unknown name or key, or a value out of range; all faults are listed.
        InputFileError: the file is missing or is no YAML mapping.
    """
    if name not in TRAININGS:
        raise unknown_name("reference model", name, TRAININGS)
    values: dict[str, Any] = {} if file is None else _read_yaml(file)
    return checked_settings(TRAININGS[name].config, values, overrides or {})


def checked_settings(
    kind: type[TrainingConfig], values: dict[str, Any], overrides: Mapping[str, Any]
) -> TrainingConfig:
    """Return settings from values with `key.path` overrides; raises UsageError with all faults."""
    for key, value in overrides.items():
        _set_path(values, key.split("."), value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        known = ", ".join(kind.model_fields)
        raise UsageError(f"{describe_faults(error)}. Known settings: {known}.") from error


def train_reference(
    name: str,
    config: TrainingConfig,
    options: RunOptions,
    *,
    device: str = "auto",
    images: Path | None = None,
    start: Path | None = None,
    teacher: Path | None = None,
    command: str = "",
    on_progress: Callable[[Progress], None],
    on_download: Callable[[int, int], None] | None = None,
) -> Path:
    """Train a reference to its end; write `NAME.pt` and the card `NAME.json`; return the former.

    Args:
        name: of the reference.
        config: from `load_training_config`.
        options: where the run writes.
        device: auto, cpu or cuda.
        images: folder with the training images; None: found or downloaded.
        start: a .pt to begin with, pruned or not; the model has its shape.
        teacher: a .pt to learn from.
        command: what the card names as the command.
        on_progress: told after steps.
        on_download: told during a download.

    Raises:
        UsageError: the model to start with, or the teacher, is of another kind.
        NotOnThisMachineError: the device or the training images are not here.
        StoppedError: interrupted; the next call with the same folder goes on.
    """
    origin, taught_by = (_model(name, path) for path in (start, teacher))
    trainer = make_trainer(
        name,
        config,
        device=device,
        images=images,
        start=origin,
        teacher=taught_by,
        on_download=on_download,
    )
    seconds = run_training(trainer, options, on_progress=on_progress)
    before = () if origin is None else tuple(asdict(each) for each in origin.history)
    step = {
        "name": "distill" if teacher else "finetune" if start else "train",
        "config": trainer.config.model_dump(mode="json"),
        "seed": config.seed,
    }
    path = options.folder / f"{name}.pt"
    write_checkpoint(path, replace(trainer.checkpoint(), history=(*before, step)))
    card = {
        **_describe(trainer, seconds),
        "command": command,
        "started_from_sha256": None if start is None else digest_file(start),
        "teacher_sha256": None if teacher is None else digest_file(teacher),
        "test": asdict(trainer.evaluate("test", None)),
        "sha256": digest_file(path),
    }
    write_bytes(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    return path


def make_trainer(
    name: str,
    config: TrainingConfig,
    *,
    device: str = "auto",
    images: Path | None = None,
    start: Artifact | None = None,
    teacher: Artifact | None = None,
    on_download: Callable[[int, int], None] | None = None,
) -> Trainer:
    """Return what trains a reference; arguments and errors like those of `train_reference`."""
    training = TRAININGS[name]
    if teacher is None and "distill" in config.model_fields_set:
        raise UsageError("`distill` has no effect without a teacher: name one, or leave it out.")
    chosen = choose_device(device)
    extra = {}
    if training.needs_images:
        extra["images"] = data.training_images(data.find_training_images(images, on_download))
    if start is not None:
        config = _shaped_like(config, start)
    return training.trainer(config, device=chosen, start=start, teacher=teacher, **extra)


def _model(name: str, path: Path | None) -> Artifact | None:
    """Load a model of the kind that is trained."""
    if path is None:
        return None
    artifact = load_artifact(path)
    if artifact.stage != "torch" or artifact.spec is None or artifact.spec.name != name:
        raise UsageError(f"{path} is no {name} model (.pt), so this training cannot use it.")
    return artifact


def _shaped_like(config: TrainingConfig, origin: Artifact) -> TrainingConfig:
    """Return the settings with the shape of the model that the training begins with."""
    assert origin.spec is not None
    shape: BaseModel = config.model  # type: ignore[attr-defined]
    told = {k: v for k, v in origin.spec.config.items() if k in type(shape).model_fields}
    wanted = type(shape).model_validate(told)
    if shape not in (wanted, type(config)().model):  # type: ignore[attr-defined]
        raise UsageError(
            "A training that starts from a model keeps its shape, so `model` cannot be set."
            " Leave it out, or use --teacher instead of --start-from."
        )
    return config.model_copy(update={"model": wanted})


def _describe(trainer: Trainer, seconds: float) -> dict[str, Any]:
    """Return the part of a card that tells how the model was trained, and on what."""
    is_cuda = trainer.device.type == "cuda"
    return {
        "model": trainer.name,
        "data": trainer.data_name,
        "split": "trained on train, chosen on validation, measured once on test",
        "config": trainer.config.model_dump(mode="json"),
        "precision": "bf16 autocast" if trainer.uses_bf16 else "fp32",
        "device": torch.cuda.get_device_name() if is_cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "seconds": round(seconds),
        "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def choose_device(name: str) -> torch.device:
    """Return a device by name; raises UsageError or NotOnThisMachineError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"{name!r} is no device to train on. Use auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise NotOnThisMachineError("There is no CUDA device here. Use --device cpu.")
    return torch.device(name)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputFileError(f"Cannot read {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputFileError(f"{path} must hold a mapping of settings, like `steps: 100`.")
    return values


def _set_path(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UsageError(f"{key} is a single value; it has no setting {keys[-1]!r}.")
    values[keys[-1]] = value
