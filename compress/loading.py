"""Turn what a user names - a reference, a .pt, an .onnx - into an artifact."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from aigc_compress.models import SHIPPED
from aigc_compress.models.own import is_own

from .artifact import Artifact, ModelSpec, Step, read_onnx
from .checkpoint import read_checkpoint
from .errors import InputFileError, describe_faults, missing_file
from .packed import is_packed
from .storage import digest_file

__all__ = ["load_artifact", "resolve_source"]


def resolve_source(source: str | Path) -> Path:
    """Return the file behind a name: a file that exists wins over a reference of that name."""
    path = Path(source)
    if str(source) in SHIPPED and not path.is_file():
        from aigc_compress.models.registry import weights_path

        return weights_path(str(source))
    return path


def load_artifact(source: str | Path) -> Artifact:
    """Load a shipped model by name, a `.pt` of ours, any `.onnx` or `.onnx.xz`, or a user's own.

    A user's own module is named as `package.module:factory`; the factory is called without
    arguments.

    Raises:
        UsageError: a user's own module cannot be imported.
        InputFileError: the file is missing, damaged, hostile or of another kind.
    """
    if is_own(str(source)):
        return _own(str(source))
    path = resolve_source(source)
    if path.suffix == ".onnx" or is_packed(path):
        return read_onnx(path)
    if path.suffix == ".pt":
        return _load_torch(path)
    if path.is_dir():
        raise missing_file(path)
    if not path.exists():
        raise InputFileError(
            f"There is no file {path}, and no shipped model of that name ({', '.join(SHIPPED)})."
        )
    if path.suffix == ".engine":
        raise InputFileError(
            f"{path} is an engine already. Name the model that it was built of; bench builds its"
            " engine anew with --engine trt. `doctor` tells whether this one runs here."
        )
    raise InputFileError(
        f"{path} is neither .pt nor .onnx (nor .onnx.xz). Export your model to ONNX first."
    )


def _own(name: str) -> Artifact:
    """Build the module that a user named as `package.module:factory`."""
    import torch

    from aigc_compress.models.own import allow, build_own

    allow(name)
    module = build_own(name, {}).eval()
    sha = hashlib.sha256()
    for key, value in module.state_dict().items():
        sha.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return Artifact("torch", module, ModelSpec(name, {}), source_sha256=sha.hexdigest())


def _load_torch(path: Path) -> Artifact:
    from aigc_compress.models.registry import build_module

    checkpoint = read_checkpoint(path)
    spec = ModelSpec(checkpoint.model, checkpoint.config, checkpoint.sizes)
    module = build_module(spec.name, spec.config, checkpoint.state_dict, spec.sizes)
    try:
        history = tuple(Step(**step) for step in checkpoint.history)
    except (ValidationError, TypeError) as error:
        raise InputFileError(f"{path} has a damaged history: {describe_faults(error)}") from error
    return Artifact(
        "torch",
        module,
        spec,
        checkpoint.task,
        history,
        digest_file(path),
        checkpoint.companions,
    )
