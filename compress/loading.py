"""Turn what a user names - a reference, a .pt, an .onnx - into an artifact."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from aigc_compress.models import REFERENCES

from .artifact import Artifact, ModelSpec, Step, read_onnx
from .checkpoint import read_checkpoint
from .errors import InputFileError, describe_faults, missing_file
from .storage import digest_file

__all__ = ["load_artifact", "resolve_source"]


def resolve_source(source: str | Path) -> Path:
    """Return the file behind a name: a file that exists wins over a reference of that name."""
    path = Path(source)
    if str(source) in REFERENCES and not path.is_file():
        from aigc_compress.models.registry import weights_path

        return weights_path(str(source))
    return path


def load_artifact(source: str | Path) -> Artifact:
    """Load a shipped reference by name, one of our `.pt` files, or any `.onnx` file.

    Raises:
        InputFileError: the file is missing, damaged, hostile or of another kind.
    """
    path = resolve_source(source)
    if path.suffix == ".onnx":
        return read_onnx(path)
    if path.suffix == ".pt":
        return _load_torch(path)
    if path.is_dir():
        raise missing_file(path)
    if not path.exists():
        raise InputFileError(
            f"There is no file {path}, and no reference of that name ({', '.join(REFERENCES)})."
        )
    raise InputFileError(f"{path} is neither .pt nor .onnx. Export your model to ONNX first.")


def _load_torch(path: Path) -> Artifact:
    from aigc_compress.models.registry import build_module

    checkpoint = read_checkpoint(path)
    module = build_module(checkpoint.model, checkpoint.config, checkpoint.state_dict)
    try:
        history = tuple(Step(**step) for step in checkpoint.history)
    except (ValidationError, TypeError) as error:
        raise InputFileError(f"{path} has a damaged history: {describe_faults(error)}") from error
    spec = ModelSpec(checkpoint.model, checkpoint.config)
    return Artifact("torch", module, spec, checkpoint.task, history, digest_file(path))
