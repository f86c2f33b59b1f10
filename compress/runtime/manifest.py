"""What a bundle says of itself, read with care: see BUNDLE.md."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aigc_compress.errors import InputFileError

__all__ = ["MANIFEST", "SCHEMA", "Golden", "Manifest", "Port", "Stored", "Variant", "read_manifest"]

MANIFEST = "manifest.json"
SCHEMA = "aigc-compress/bundle/1"
DTYPES = (
    *("bool", "float16", "float32", "float64"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
)
T = TypeVar("T")


@dataclass(frozen=True)
class Port:
    """An input or output: its name, numpy dtype, axes (a name where any length goes), meaning."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str = ""

    @property
    def batch_axis(self) -> int | None:
        """Return the axis of samples; None where there is none."""
        return self.shape.index("batch") if "batch" in self.shape else None


@dataclass(frozen=True)
class Variant:
    """One form of the model.

    Attributes:
        name: what it is called.
        engine: what runs it, `ort` or `trt`.
        model: the member that holds it.
        precision: int8 or float.
        needs: by architecture, instruction sets of which the processor must have one.
        least_db: agreement with the recorded outputs that it must show.
        latency_ms: of a call of batch 1 where it was recorded; None: it was not.
        size_bytes: of its graph.
        inputs: its own, or the bundle's.
        outputs: likewise.
        processing: likewise.
        evidence: how it was measured: speed, quality.
        history: how it was made.
    """

    name: str
    engine: str
    model: str
    precision: str
    needs: Mapping[str, tuple[str, ...]]
    least_db: float
    latency_ms: float | None
    size_bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    processing: Mapping[str, Any]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Any] = ()


@dataclass(frozen=True)
class Stored:
    """An array in a member of its own: little-endian, C order."""

    member: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Golden:
    """A set of feeds, those of variants with inputs of their own, and what every variant gave."""

    inputs: tuple[Stored, ...]
    own_inputs: Mapping[str, tuple[Stored, ...]]
    outputs: Mapping[str, tuple[Stored, ...]]

    def inputs_of(self, variant: str) -> tuple[Stored, ...]:
        """Return the feeds of a variant."""
        return self.own_inputs.get(variant, self.inputs)


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds, and what it is for."""

    name: str
    task: str | None
    kind: str | None
    version: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    processing: Mapping[str, Any]
    variants: tuple[Variant, ...]
    golden: tuple[Golden, ...]
    machine: Mapping[str, Any]
    licences: tuple[str, ...]
    document: Mapping[str, Any] = field(repr=False)


def read_manifest(content: bytes) -> Manifest:
    """Return the manifest in the bytes of `manifest.json`.

    Raises:
        InputFileError: it is of another version, or malformed.
    """
    try:
        document = json.loads(content)
        schema = document["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputFileError(f"{MANIFEST} is no manifest of a bundle.") from error
    if schema != SCHEMA:
        raise InputFileError(
            f"The bundle is of the format {str(schema)[:80]!r}; this version reads {SCHEMA!r}."
        )
    try:
        return _manifest(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputFileError(f"{MANIFEST} is malformed: {error!r}.") from error


def _manifest(document: Mapping[str, Any]) -> Manifest:
    inputs, outputs = (_each(document[key], _port) for key in ("inputs", "outputs"))
    processing = _mapping(document["processing"])
    common = (inputs, outputs, processing)
    variants = _each(document["variants"], lambda told: _variant(told, *common))
    manifest = Manifest(
        _text(document["name"]),
        _maybe(document["task"], _text),
        _maybe(document["kind"], _text),
        _text(document["version"]),
        inputs,
        outputs,
        processing,
        variants,
        _each(document["golden"], _golden),
        _mapping(document["machine"]),
        _each(document["licences"], _text),
        document,
    )
    _require(bool(variants and inputs and outputs), "a model needs variants, inputs and outputs")
    names = [each.name for each in variants]
    _require(len({*names}) == len(names), "variants share a name")
    for each in manifest.golden:
        _require({*each.outputs} == {*names}, "a golden set lacks a variant")
        for variant in variants:
            lengths = len(each.inputs_of(variant.name)), len(each.outputs[variant.name])
            wanted = len(variant.inputs), len(variant.outputs)
            _require(lengths == wanted, "a golden set lacks arrays")
    return manifest


def _port(told: Mapping[str, Any]) -> Port:
    dtype = _text(told["dtype"])
    _require(dtype in DTYPES, f"no dtype {dtype[:40]!r}")
    return Port(_text(told["name"]), dtype, _each(told["shape"], _axis), _text(told["meaning"]))


def _variant(
    told: Mapping[str, Any],
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    processing: Mapping[str, Any],
) -> Variant:
    needs = {_text(k): _each(v, _text) for k, v in _mapping(told["needs"]).items()}
    return Variant(
        _text(told["name"]),
        _text(told["engine"]),
        _text(told["model"]),
        _text(told["precision"]),
        needs,
        _number(told["least_db"]),
        _maybe(told["latency_ms"], _number),
        _whole(told["size_bytes"]),
        _maybe(told["inputs"], lambda own: _each(own, _port)) or inputs,
        _maybe(told["outputs"], lambda own: _each(own, _port)) or outputs,
        _maybe(told["processing"], _mapping) or processing,
        _mapping(told["evidence"]),
        _each(told["history"], lambda each: each),
    )


def _golden(told: Mapping[str, Any]) -> Golden:
    outputs = {k: _each(v, _stored) for k, v in _mapping(told["outputs"]).items()}
    own = _maybe(told["own_inputs"], _mapping) or {}
    own_inputs = {k: _each(v, _stored) for k, v in own.items()}
    return Golden(_each(told["inputs"], _stored), own_inputs, outputs)


def _stored(told: Mapping[str, Any]) -> Stored:
    return Stored(_text(told["member"]), _each(told["shape"], _whole))


def _axis(told: object) -> int | str:
    return told if isinstance(told, str) else _whole(told)


def _each(told: object, read: Callable[[Any], T]) -> tuple[T, ...]:
    _require(isinstance(told, list), "a list is missing")
    return tuple(read(each) for each in told)  # type: ignore[attr-defined]


def _maybe(told: object, read: Callable[[Any], T]) -> T | None:
    return None if told is None else read(told)


def _mapping(told: object) -> Mapping[str, Any]:
    _require(isinstance(told, dict), "an object is missing")
    return told  # type: ignore[return-value]


def _text(told: object) -> str:
    _require(isinstance(told, str), "a text is missing")
    return told  # type: ignore[return-value]


def _number(told: object) -> float:
    is_number = isinstance(told, int | float) and not isinstance(told, bool)
    _require(is_number and math.isfinite(told), "a number is missing")  # type: ignore[arg-type]
    return float(told)  # type: ignore[arg-type]


def _whole(told: object) -> int:
    is_whole = isinstance(told, int) and not isinstance(told, bool) and 0 <= told < 2**31
    _require(is_whole, "a whole number is missing")
    return told  # type: ignore[return-value]


def _require(is_so: bool, told: str) -> None:
    if not is_so:
        raise ValueError(told)
