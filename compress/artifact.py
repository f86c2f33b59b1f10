"""A model at one stage of the line, with the history of how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from .errors import InputFileError, OutputError, describe_faults, first_line, missing_file
from .packed import is_packed, packed, unpacked
from .storage import write_bytes

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = [
    "Artifact",
    "ModelSpec",
    "Step",
    "TensorSpec",
    "graph_tensors",
    "model_files",
    "onnx_bytes",
    "read_onnx",
    "save_onnx",
    "size_on_disk",
]

PREFIX = "aigc_compress."
OLDEST_OPSET = 11


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, numpy dtype name, and sizes (a string is a dynamic axis)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@validated(frozen=True)
class ModelSpec:
    """The kind of a model, the config that rebuilds it, and what pruning changed of it.

    Attributes:
        name: a key of the models' table.
        config: keyword values of the kind's config.
        sizes: attributes of submodules that pruning set, by the submodule's path.
    """

    name: str
    config: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@validated(frozen=True)
class Step:
    """One step of the line: its name, settings, seed, and the numbers it left behind."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """One model at one stage; a pass returns a new one.

    Attributes:
        stage: `torch` (payload is an nn.Module in evaluation mode) or `onnx` (a ModelProto).
        payload: the model itself; never changed in place.
        spec: kind and config where it is known.
        task: name of the task, or None.
        history: the steps that made it, oldest first.
        source_sha256: digest of the file that the line began with.
        companions: models that belong to it, as a checkpoint holds them (torch alone).
    """

    stage: Literal["torch", "onnx"]
    payload: Any
    spec: ModelSpec | None = None
    task: str | None = None
    history: tuple[Step, ...] = ()
    source_sha256: str | None = None
    companions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def counted(self) -> Mapping[str, Any]:
        """The numbers of the last step that counted integer and float operators; else empty."""
        for step in reversed(self.history):
            if step.name == "dequantize":
                return {}
            if "operators" in step.numbers:
                return step.numbers
        return {}

    def then(self, payload: Any, step: Step, *, stage: Literal["torch", "onnx"]) -> Artifact:
        """Return the artifact that `step` made of this one."""
        return replace(self, stage=stage, payload=payload, history=(*self.history, step))


def read_onnx(path: Path) -> Artifact:
    """Read an ONNX file, plain or packed, and what its metadata tells of its making.

    External data of a plain file is read too.

    Raises:
        InputFileError: the file is missing, is no valid ONNX model, or is older than opset 11.
    """
    import onnx
    from google.protobuf.message import DecodeError

    from .storage import digest_file

    if not path.is_file():
        raise missing_file(path)
    try:
        content = unpacked(path) if is_packed(path) else None
        onnx.checker.check_model(str(path) if content is None else content)
        model = onnx.load(path) if content is None else onnx.load_from_string(content)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise InputFileError(f"{path} is not a valid ONNX model: {first_line(error)}") from error
    if not model.graph.node:
        raise InputFileError(f"{path} is not a usable ONNX model: its graph has no nodes.")
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset and opset < OLDEST_OPSET:
        raise InputFileError(f"{path} uses opset {opset}; the oldest that is read is opset 11.")
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value")
            raise InputFileError(f"{path}: {value.name} is a {kind}; only tensors are supported.")
    return _with_provenance(model, digest_file(path), path)


def save_onnx(artifact: Artifact, path: Path) -> None:
    """Write an onnx artifact with its provenance in `metadata_props`, whole or not at all.

    A path that ends in `.onnx.xz` is packed.
    """
    content = onnx_bytes(artifact)
    write_bytes(path, packed(content) if is_packed(path) else content)


def onnx_bytes(artifact: Artifact) -> bytes:
    """Return an onnx artifact as a file's content; raises OutputError above 2 GB."""
    import onnx
    from google.protobuf.message import EncodeError

    from . import __version__

    model = onnx.ModelProto()
    model.CopyFrom(artifact.payload)
    kept = [prop for prop in model.metadata_props if not prop.key.startswith(PREFIX)]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    provenance = {
        "version": __version__,
        "source_sha256": artifact.source_sha256,
        "task": artifact.task,
        "model": json.dumps(asdict(artifact.spec)) if artifact.spec else None,
        "history": json.dumps([asdict(step) for step in artifact.history]),
    }
    for key, value in provenance.items():
        if value is not None:
            model.metadata_props.add(key=PREFIX + key, value=value)
    try:
        content: bytes = model.SerializeToString()
    except (ValueError, EncodeError) as error:
        raise OutputError("ONNX files above 2 GB are not supported.") from error
    return content


def graph_tensors(model: ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs (initializers left out) and outputs of a graph."""
    constants = {each.name for each in model.graph.initializer}
    inputs = [_tensor_spec(each) for each in model.graph.input if each.name not in constants]
    return tuple(inputs), tuple(_tensor_spec(each) for each in model.graph.output)


def size_on_disk(path: Path) -> int:
    """Return the bytes of a model file and of the external data files that it names."""
    return sum(each.stat().st_size for each in model_files(path))


def model_files(path: Path) -> list[Path]:
    """Return a model file and the external data files that it names."""
    if path.suffix != ".onnx":
        return [path]
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    graph = onnx.load(path, load_external_data=False).graph
    names = {
        ExternalDataInfo(each).location for each in graph.initializer if uses_external_data(each)
    }
    return [path, *(path.parent / name for name in sorted(names))]


def _tensor_spec(value: Any) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.dim_value > 0 else _axis_name(dim.dim_param, value.name, index)
        for index, dim in enumerate(tensor.shape.dim)
    )
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:
        dtype = f"onnx type {tensor.elem_type}"
    return TensorSpec(value.name, dtype, shape)


def _axis_name(given: str, tensor: str, index: int) -> str:
    """Return the axis's own name; `?`, `-1` and the like name nothing, so each axis gets one."""
    return given if given.isidentifier() else f"{tensor}_axis{index}"


def _with_provenance(model: ModelProto, digest: str, path: Path) -> Artifact:
    told = {
        prop.key.removeprefix(PREFIX): prop.value
        for prop in model.metadata_props
        if prop.key.startswith(PREFIX)
    }
    try:
        spec = TypeAdapter(ModelSpec).validate_json(told["model"]) if "model" in told else None
        history = TypeAdapter(tuple[Step, ...]).validate_json(told.get("history", "[]"))
    except ValidationError as error:
        raise InputFileError(
            f"{path} has damaged metadata of aigc-compress: {describe_faults(error)}"
        ) from error
    return Artifact("onnx", model, spec, told.get("task"), history, digest)
