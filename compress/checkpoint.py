"""The `.pt` file of a torch artifact: spec and weights as plain data, never a pickled module."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from .artifact import Artifact
from .errors import InputFileError, UsageError, describe_faults, first_line, missing_file
from .storage import write_bytes

__all__ = [
    "FORMAT",
    "Checkpoint",
    "read_checkpoint",
    "read_plain",
    "save_torch",
    "write_checkpoint",
    "write_torch",
]

FORMAT = "aigc-compress/checkpoint/1"


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class Checkpoint:
    """A model as spec and weights.

    Attributes:
        model: name of the kind of model, a key of the models' table.
        config: keyword values of the kind's config, plain JSON types.
        state_dict: the module's tensors by name.
        task: name of the task that the model was made for, or None.
        history: one plain dict per step that made the model, oldest first.
        companions: models that belong to it (a GAN's discriminator), each with the keys
            `model`, `config` and `state_dict`.
        sizes: attributes of submodules that pruning set, by the submodule's path.
    """

    model: str
    config: Mapping[str, Any]
    state_dict: Mapping[str, Any]
    task: str | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    companions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file whole or not at all; raises OutputError."""
    document = {
        "format": FORMAT,
        "model": checkpoint.model,
        "config": dict(checkpoint.config),
        "state_dict": dict(checkpoint.state_dict),
        "task": checkpoint.task,
        "history": [dict(step) for step in checkpoint.history],
        "companions": {name: dict(value) for name, value in checkpoint.companions.items()},
        "sizes": {path: dict(value) for path, value in checkpoint.sizes.items()},
    }
    write_torch(path, document)


def save_torch(artifact: Artifact, path: Path) -> None:
    """Write a torch artifact with its history, whole or not at all.

    Raises:
        UsageError: nothing tells how the module is built again.
        OutputError: the file cannot be written.
    """
    spec = artifact.spec
    if spec is None:
        raise UsageError("This module has no spec to rebuild it from; save its state_dict instead.")
    state = {name: value.cpu() for name, value in artifact.payload.state_dict().items()}
    history = tuple(asdict(step) for step in artifact.history)
    checkpoint = Checkpoint(
        spec.name, spec.config, state, artifact.task, history, artifact.companions, spec.sizes
    )
    write_checkpoint(path, checkpoint)


def write_torch(path: Path, document: Mapping[str, Any]) -> None:
    """Write plain data and tensors as a torch file, whole or not at all; raises OutputError.

    Serialized in memory first: torch reports a full disk as a RuntimeError of its own.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(dict(document), buffer)
    write_bytes(path, buffer.getvalue())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without running any code in it.

    Raises:
        InputFileError: the file is missing, damaged, hostile or not a checkpoint of ours.
    """
    document = read_plain(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputFileError(
            f"{path} is a torch file but not a checkpoint of aigc-compress ({FORMAT!r} expected in"
            " its 'format'). Export your model to ONNX and pass the .onnx file."
        )
    fields = {key: value for key, value in document.items() if key != "format"}
    try:
        return Checkpoint(**fields)
    except (ValidationError, TypeError) as error:
        raise InputFileError(
            f"{path} is not in the checkpoint format: {describe_faults(error)}"
        ) from error


def read_plain(path: Path) -> Any:
    """Read the plain data of any torch file with `weights_only=True`; raises InputFileError."""
    import torch

    if not path.is_file():
        raise missing_file(path)
    if not zipfile.is_zipfile(path):
        raise InputFileError(f"{path} is not a torch file: it is empty, cut off or something else.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputFileError(
            f"{path} is refused: it holds more than tensors and plain data, and reading it could"
            " run foreign code. Nothing in it was run."
        ) from error
    except Exception as error:  # torch's reader of damaged pickles raises whatever it runs into
        raise InputFileError(f"{path} is damaged: {first_line(error)}") from error
