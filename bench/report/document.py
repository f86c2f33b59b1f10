"""Read what `aigc-compress bench -o` and the peers wrote; nothing in it is trusted.

A document comes from anywhere: its numbers must be finite and in range, its texts lose their
control characters, and the page escapes them later. What a newer version adds is passed over.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from aigc_compress.errors import InputFileError, missing_file

from .exhibit import MOST_EXHIBIT_CHARACTERS, check_exhibit

__all__ = [
    "SCHEMAS",
    "Document",
    "ExhibitData",
    "Layer",
    "Machine",
    "Operators",
    "Percentile",
    "Quality",
    "Roofline",
    "Row",
    "Speedup",
    "read_document",
]

SCHEMAS = ("aigc-compress/bench/1", "aigc-compress/peers/1")
MOST_BYTES = 256_000_000
MOST_ROWS = 2_000
MOST_FAULTS = 3
# Control characters, and those that turn the direction of the text around them.
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def _seen(text: str) -> str:
    return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


Text = Annotated[str, Field(max_length=20_000), AfterValidator(_seen)]
Name = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_seen)]
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Amount = Annotated[float, Field(ge=0, le=1e18)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
Count = Annotated[int, Field(ge=0, le=10**18)]


class Part(BaseModel):
    """What all parts of a document share: frozen, strict types, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class Speedup(Part):
    """How many times faster than the baseline, with its interval."""

    ratio: Positive
    low: Positive
    high: Positive
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95

    @property
    def verdict(self) -> str:
        """Return `faster` or `slower` only where the interval leaves 1 out."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference shown"


class Percentile(Part):
    """A percentile of single calls in ms; the ends are None where there were too few calls."""

    value: Positive
    low: Amount | None = None
    high: Amount | None = None


class Roofline(Part):
    """The least time that the machine allows, what sets it, and the share reached."""

    milliseconds: Amount
    bound_by: Name
    efficiency: Amount | None = None


class Layer(Part):
    """One node of the session: time, arithmetic, limit (see `bench/profile.py`)."""

    name: Text
    op: Name
    ms: Amount
    share: Annotated[float, Field(ge=0, le=1)]
    macs: Count = 0
    weight_bytes: Count = 0
    is_integer: bool = False
    limit_ms: Amount | None = None
    efficiency: Amount | None = None
    role: Text | None = None


class Operators(Part):
    """Operators at run time by type, and why costly ones stay float."""

    int8: dict[Name, Count] = Field(default_factory=dict)
    float_: dict[Name, Count] = Field(default_factory=dict, alias="float")
    weights_only: dict[Name, Count] = Field(default_factory=dict)
    overhead: dict[Name, Count] = Field(default_factory=dict)
    reasons: dict[Name, dict[Text, Count] | Text] = Field(default_factory=dict)


class ExhibitData(Part):
    """A PNG in base64, or a text."""

    kind: Literal["image/png", "text/plain"]
    data: Annotated[str, Field(max_length=MOST_EXHIBIT_CHARACTERS), AfterValidator(_seen)]

    @model_validator(mode="after")
    def _is_what_it_says(self) -> ExhibitData:
        check_exhibit(self.kind, self.data)
        return self


class Quality(Part):
    """A measured quality beside its baseline and budget; null where it was not finite."""

    metric: Name
    higher_is_better: bool
    value: Number | None
    within: bool
    baseline: Number | None = None
    drop: Number | None = None
    budget: Number | None = None
    samples: Count | None = None
    split: Text | None = None
    spread: Amount | None = None
    details: dict[Name, JsonValue] = Field(default_factory=dict)
    exhibit: ExhibitData | None = None


class Row(Part):
    """One model on one engine at one batch size and length; with an error it has no timing."""

    model: Name
    engine: Name
    batch: Annotated[int, Field(ge=1, le=10**9)] | None = None
    length: Annotated[int, Field(ge=1, le=10**9)] | None = None
    is_baseline: bool = False
    size_bytes: Count | None = None
    compressed_bytes: Count | None = None
    sha256: Text | None = None
    latency_ms: Positive | None = None
    samples_per_second: Amount | None = None
    percentiles_ms: dict[Name, Percentile] | None = None
    load_ms: Amount | None = None
    first_ms: Amount | None = None
    peak_resident_bytes: Count | None = None
    speedup: Speedup | None = None
    roofline: Roofline | None = None
    operators: Operators | None = None
    layers: tuple[Layer, ...] | None = None
    quality: Quality | None = None
    blocks_ms: tuple[tuple[Amount, ...], ...] | None = None
    calls_ns: tuple[tuple[tuple[Amount, ...], ...], ...] | None = None
    peer: Name | None = None
    error: Text | None = None

    @model_validator(mode="after")
    def _has_timing_or_an_error(self) -> Row:
        if self.latency_ms is None and not self.error:
            raise ValueError("it has neither latency_ms nor an error")
        return self


class Machine(Part):
    """Where it was measured."""

    cpu: Text | None = None
    architecture: Text | None = None
    flags: tuple[Text, ...] | None = None
    cores: Count | None = None
    memory_bytes: Count | None = None
    system: Text | None = None
    python: Text | None = None
    versions: dict[Name, Text | None] = Field(default_factory=dict)


class Trust(Part):
    """What else the machine did meanwhile; the complaint is empty where it was quiet."""

    foreign_cores: Amount
    steal_percent: Number
    complaint: Text = ""


class Document(Part):
    """A whole result; `name` is that of its file."""

    name: Text = ""
    schema_name: Literal["aigc-compress/bench/1", "aigc-compress/peers/1"] = Field(alias="schema")
    rows: Annotated[tuple[Row, ...], Field(min_length=1, max_length=MOST_ROWS)]
    machine: Machine = Machine()
    trust: Trust | None = None
    settings: dict[Name, JsonValue] = Field(default_factory=dict)
    feeds_sha256: tuple[Text, ...] = ()
    notes: tuple[Text, ...] = ()


class _Header(BaseModel):
    schema_name: str = Field(alias="schema")


def read_document(path: Path) -> Document:
    """Read and check a result.

    Raises:
        InputFileError: the file is missing, too large, no JSON, or not a result that we know.
    """
    content = _read_bytes(path)
    try:
        schema = _Header.model_validate_json(content).schema_name
        if schema not in SCHEMAS:
            raise InputFileError(
                f"{path} has the schema {_short(schema)!r}; known are {', '.join(SCHEMAS)}."
            )
        return Document.model_validate_json(content).model_copy(update={"name": _seen(path.name)})
    except ValidationError as error:
        raise InputFileError(f"{path} is no result of ours: {_describe(error)}.") from error


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise missing_file(path)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputFileError(
            f"{path} has {size / 1e6:.0f} MB; a result has at most {MOST_BYTES / 1e6:.0f} MB."
        )
    return path.read_bytes()


def _describe(error: ValidationError) -> str:
    """Return the first faults on one line; names in it come from the file."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    told = [
        f"{_short('.'.join(map(str, fault['loc'])) or 'whole')}: {_short(fault['msg'])}"
        for fault in faults[:MOST_FAULTS]
    ]
    more = len(faults) - MOST_FAULTS
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def _short(text: str, most: int = 120) -> str:
    line = " ".join(_seen(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
