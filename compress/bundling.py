"""`bundle`: one file with everything that an app needs of a model, and that proves itself.

Where a bundle is made, every variant runs on the golden feeds, and what it gives is recorded. The
same inputs give the same bytes on the same machine; a latency is measured on request alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.bench.meter import QuickMeter

from . import __version__
from .api import to_onnx
from .artifact import Artifact, TensorSpec, graph_tensors, onnx_bytes
from .building import read_card
from .engines.ort import OrtSession
from .errors import InputFileError, UsageError
from .loading import load_artifact, resolve_source
from .machine import describe_machine
from .packed import packed
from .passes.operators import operators_at_run_time
from .passes.saturation import find_saturation
from .running import CARD_SCHEMA
from .runtime.archive import SUFFIX, archive_bytes
from .runtime.manifest import MANIFEST, SCHEMA
from .storage import read_json, require_writable, write_bytes
from .task import Deployable, Feeds, OnStep, Use, quiet
from .workload import FeedOptions, TaskWorkload, Workload, make_workload

__all__ = ["BundleOptions", "Bundled", "bundle", "make_bundle"]

# Kernels of other processors round otherwise, and a rounding that flips moves an integer by one.
LEAST_DB = {"int8": 30.0, "float": 60.0}
ENGINE_DB = {"fp32": 40.0, "fp16": 30.0, "int8": 15.0}
SETS = ((1, 1), (3, 5))  # samples and time steps of the golden sets
WITH_VNNI = ("avx512_vnni", "avx_vnni")
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class BundleOptions:
    """What a bundle is made with.

    Attributes:
        fallback: the floating-point model, as `load_artifact` reads it; None: there is none.
        engines: TensorRT engines with their cards.
        name: of the bundle; None: the first model's.
        feeds: for a model without a task.
        is_packed: whether graphs are entropy-coded: smaller to download, decoded at load.
        is_timed: whether latencies are measured now and recorded.
        private_key: 32 bytes of an ed25519 key to sign with; None: unsigned.
        licences: what the user says of them.
        seed: of the golden feeds.
    """

    fallback: str | Path | None = None
    engines: tuple[Path, ...] = ()
    name: str | None = None
    feeds: FeedOptions = field(default_factory=FeedOptions)
    is_packed: bool = False
    is_timed: bool = False
    private_key: bytes | None = None
    licences: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Bundled:
    """A made bundle.

    Attributes:
        content: of the file.
        manifest: what it says of itself, ready for JSON.
        notes: what the user should know.
    """

    content: bytes
    manifest: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def bundle(
    models: Sequence[str | Path],
    output: Path,
    options: BundleOptions | None = None,
    *,
    on_step: OnStep = quiet,
) -> Bundled:
    """Make a bundle and write it, whole or not at all; see `make_bundle`.

    Raises:
        OutputError: it cannot be written, or holds more than a bundle can.
    """
    if not output.name.endswith(SUFFIX):
        raise UsageError(f"The output {output} must end in {SUFFIX}.")
    require_writable(output)
    made = make_bundle(models, options, on_step=on_step)
    write_bytes(output, made.content)
    return made


def make_bundle(
    models: Sequence[str | Path],
    options: BundleOptions | None = None,
    *,
    on_step: OnStep = quiet,
) -> Bundled:
    """Make a bundle of variants of one model.

    Args:
        models: `.onnx` files, or what exports to one, in the order of preference.
        options: see BundleOptions.
        on_step: called with (done, total) variants.

    Raises:
        UsageError: a source is wrong, or the variants are not of one task.
        PassError: a variant does not run on its feeds.
        NotOnThisMachineError: signing needs the package cryptography.
    """
    options = options or BundleOptions()
    sources = [*models, *([] if options.fallback is None else [options.fallback])]
    if not sources:
        raise UsageError("A bundle needs a model.")
    variants = []
    for done, source in enumerate(sources):
        on_step(done, len(sources))
        variants.append(_variant(source, options))
    _require_one_task(variants)
    members: dict[str, bytes] = {}
    manifest = _manifest(variants, options, members)
    ordered = {MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode(), **members}
    content = archive_bytes(ordered, private_key=options.private_key)
    notes = (*_about_feeds(variants[0].workload, options.feeds), *_missing(variants))
    return Bundled(content, manifest, notes)


@dataclass(frozen=True)
class _Variant:
    """A graph with its feeds and what it gives for them.

    Attributes:
        name: of the variant.
        source: the file that it came from.
        artifact: the graph.
        workload: its feeds.
        use: what an app needs to know; None: nobody knows.
        feeds: golden sets.
        outputs: what it gives for them.
        latency_ms: as it was measured now; None: it was not.
    """

    name: str
    source: Path
    artifact: Artifact
    workload: Workload
    use: Use | None
    feeds: tuple[Feeds, ...]
    outputs: tuple[Arrays, ...]
    latency_ms: float | None

    @property
    def face(self) -> dict[str, Any]:
        """Return inputs, outputs and processing, ready for JSON."""
        inputs, outputs = graph_tensors(self.artifact.payload)
        batch = {each.shape[0] for each in inputs if each.shape and isinstance(each.shape[0], str)}
        named = {axis: "batch" if axis in batch else axis for axis in _axes(inputs)}
        lengths = {
            tuple(feeds[each.name].shape[at] for feeds in self.feeds): named[axis]
            for each in inputs
            for at, axis in enumerate(each.shape)
            if isinstance(axis, str)
        }
        return {
            "inputs": [self._port(each, named) for each in inputs],
            "outputs": [self._port(each, self._named(each, named, lengths)) for each in outputs],
            "processing": dict(self.use.processing) if self.use else {},
        }

    def _named(
        self,
        spec: TensorSpec,
        named: Mapping[str, str],
        lengths: Mapping[tuple[int, ...], str],
    ) -> dict[str, str]:
        """Return names for an output's axes: those of the input axes that they are as long as."""
        found = dict(named)
        for at, axis in enumerate(spec.shape):
            if isinstance(axis, str) and axis not in named:
                seen = tuple(each[spec.name].shape[at] for each in self.outputs)
                found[axis] = lengths.get(seen, axis)
        return found

    def _port(self, spec: TensorSpec, named: Mapping[str, str]) -> dict[str, Any]:
        shape = [named[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        meaning = self.use.meanings.get(spec.name, "") if self.use else ""
        return {"name": spec.name, "dtype": spec.dtype, "shape": shape, "meaning": meaning}


def _axes(specs: Sequence[TensorSpec]) -> list[str]:
    return [axis for each in specs for axis in each.shape if isinstance(axis, str)]


def _variant(source: str | Path, options: BundleOptions) -> _Variant:
    given = load_artifact(source)
    path = resolve_source(source)
    workload = make_workload(given, options.feeds)
    graph = to_onnx(given, workload, seed=options.seed)
    session = OrtSession(graph, threads=1)
    feeds = _golden_feeds(workload, options.seed)
    outputs = tuple(session.run(each) for each in feeds)
    use = None
    if isinstance(workload, TaskWorkload) and isinstance(workload.task, Deployable):
        use = workload.task.use()
    latency = None
    if options.is_timed:
        latency = QuickMeter(seed=options.seed).milliseconds([graph], feeds[0])[0]
    return _Variant(_stem(path), path, graph, workload, use, feeds, outputs, latency)


def _stem(path: Path) -> str:
    """Return a variant's name: the file's, without what the format does not allow in names."""
    plain = path.name
    for suffix in (".xz", ".onnx", ".pt", ".engine"):
        plain = plain.removesuffix(suffix)
    kept = "".join(each if each.isascii() and each.isalnum() else "-" for each in plain)
    return kept.strip("-") or "model"


def _golden_feeds(workload: Workload, seed: int) -> tuple[Feeds, ...]:
    """Return a few sets; of a task, one of one sample and one of several samples and steps."""
    if not isinstance(workload, TaskWorkload):
        return (workload.timing_feeds(batch=1, length=1, seed=seed), *workload.check_feeds())
    feeds = workload.task.feeds
    return tuple(
        feeds(batch, seed=seed + at, length=length) for at, (batch, length) in enumerate(SETS)
    )


def _require_one_task(variants: Sequence[_Variant]) -> None:
    first = variants[0]
    ports = [{each.name for each in graph_tensors(v.artifact.payload)[0]} for v in variants]
    for each, names in zip(variants, ports, strict=True):
        if each.artifact.task != first.artifact.task or names != ports[0]:
            raise UsageError(
                f"{each.source} is no variant of {first.source}: its task or inputs are others."
            )


def _manifest(
    variants: Sequence[_Variant], options: BundleOptions, members: dict[str, bytes]
) -> dict[str, Any]:
    """Return the manifest, and put what it names into the members."""
    first, face = variants[0], variants[0].face
    names = _unique([each.name for each in variants])
    told = [_told(each, name, face) for each, name in zip(variants, names, strict=True)]
    engines = [_engine(path, variants, names, members) for path in options.engines]
    golden = [_golden(at, variants, names, face, members) for at in range(len(first.feeds))]
    for each, name in zip(engines, [names[-1]] * len(engines), strict=True):
        for sets in golden:
            sets["outputs"][each["name"]] = sets["outputs"][name]
            if name in sets["own_inputs"]:
                sets["own_inputs"][each["name"]] = sets["own_inputs"][name]
    for each, variant in zip(told, variants, strict=True):
        content = onnx_bytes(variant.artifact)
        is_packed = options.is_packed
        each["model"] = f"models/{each['name']}.onnx" + (".xz" if is_packed else "")
        members[each["model"]] = packed(content) if is_packed else content
        each["size_bytes"] = len(content)
    licences = first.use.licences if first.use else ()
    return {
        "schema": SCHEMA,
        "name": options.name or names[0],
        "task": first.artifact.task,
        "kind": first.use.kind if first.use else None,
        "version": __version__,
        **face,
        "variants": [*engines, *told],
        "golden": golden,
        "machine": describe_machine(),
        "licences": [*licences, *options.licences],
    }


def _unique(names: Sequence[str]) -> list[str]:
    taken: list[str] = []
    for name in names:
        free, count = name, 1
        while free in taken:
            count += 1
            free = f"{name}-{count}"
        taken.append(free)
    return taken


def _told(variant: _Variant, name: str, face: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the manifest says of a variant."""
    graph = variant.artifact.payload
    precision = "int8" if operators_at_run_time(graph)["int8"] else "float"
    saturates = any(each.is_possible for each in find_saturation(graph))
    evidence = _evidence(variant)
    return {
        "name": name,
        "engine": "ort",
        "model": "",
        "precision": precision,
        "needs": {"x86_64": [*WITH_VNNI]} if saturates else {},
        "least_db": LEAST_DB[precision],
        "latency_ms": variant.latency_ms or evidence.get("latency_ms", {}).get("after"),
        "size_bytes": 0,
        "evidence": evidence,
        "history": [asdict(step) for step in variant.artifact.history],
        **{key: None if value == face[key] else value for key, value in variant.face.items()},
    }


def _evidence(variant: _Variant) -> dict[str, Any]:
    """Return how a variant was measured: by its card where it has one, else by its history."""
    card = _card(variant)
    if card:
        quality = {k: v for k, v in (card["quality"] or {}).items() if k != "exhibit"}
        return {**{key: card[key] for key in ("speedup", "smaller", "machine")}, "quality": quality}
    measured = [each.numbers for each in variant.artifact.history if each.name == "measure"]
    if not measured:
        return {}
    wanted = ("verdict", "speedup", "latency_ms", "threads", "quality")
    return {key: measured[-1][key] for key in wanted if key in measured[-1]}


def _card(variant: _Variant) -> Mapping[str, Any]:
    """Return the card that a recipe's run left beside this very file; empty where there is none."""
    try:
        told = read_json(variant.source.with_suffix(".json"), CARD_SCHEMA, "aigc-compress run")
    except InputFileError:  # another file of that name is none of our business
        return {}
    return told if told.get("sha256") == variant.artifact.source_sha256 else {}


def _golden(
    at: int,
    variants: Sequence[_Variant],
    names: Sequence[str],
    face: Mapping[str, Any],
    members: dict[str, bytes],
) -> dict[str, Any]:
    """Return a golden set, and put its arrays into the members."""
    inputs = [variants[0].feeds[at][each["name"]] for each in face["inputs"]]
    own, outputs = {}, {}
    for variant, name in zip(variants, names, strict=True):
        ports = variant.face
        fed = [variant.feeds[at][each["name"]] for each in ports["inputs"]]
        if not all(map(np.array_equal, fed, inputs)):
            own[name] = _stored(f"golden/{at}/{name}/input", fed, members)
        given = [variant.outputs[at][each["name"]] for each in ports["outputs"]]
        outputs[name] = _stored(f"golden/{at}/{name}/output", given, members)
    stored = _stored(f"golden/{at}/input", inputs, members)
    return {"inputs": stored, "own_inputs": own, "outputs": outputs}


def _stored(
    stem: str, arrays: Sequence[NDArray[Any]], members: dict[str, bytes]
) -> list[dict[str, Any]]:
    told = []
    for at, array in enumerate(arrays):
        name = f"{stem}-{at}.bin"
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        members[name] = np.ascontiguousarray(little).tobytes()
        told.append({"member": name, "shape": [*array.shape]})
    return told


def _engine(
    path: Path, variants: Sequence[_Variant], names: Sequence[str], members: dict[str, bytes]
) -> dict[str, Any]:
    """Return what the manifest says of an engine; its outputs are to be those of the last model."""
    card = read_card(path)
    name = _unique([*names, _stem(path)])[-1]
    members[f"engines/{name}.engine"] = path.read_bytes()
    members[f"engines/{name}.engine.json"] = (json.dumps(card, indent=1) + "\n").encode()
    face = variants[-1].face
    own = {key: None if value == variants[0].face[key] else value for key, value in face.items()}
    return {
        "name": name,
        "engine": "trt",
        "model": f"engines/{name}.engine",
        "precision": "int8" if card["precision"] == "int8" else "float",
        "needs": {},
        "least_db": ENGINE_DB[card["precision"]],
        "latency_ms": None,
        "size_bytes": card["size_bytes"],
        "evidence": {},
        "history": [],
        **own,
    }


def _about_feeds(workload: Workload, given: FeedOptions) -> Sequence[str]:
    if isinstance(workload, TaskWorkload) or not given.has_no_files:
        return ()
    noise = "The golden inputs are seeded noise, not real inputs: --calibration names some."
    return (noise, *workload.notes[1:])


def _missing(variants: Sequence[_Variant]) -> list[str]:
    """Return what the bundle lacks that would help an app."""
    notes = []
    if all(operators_at_run_time(each.artifact.payload)["int8"] for each in variants):
        notes.append(
            "There is no floating-point fallback: where integers go wrong, nothing runs. Name one"
            " with --fallback."
        )
    if variants[0].use is None:
        notes.append("The task does not say how an app uses its models: it feeds plain arrays.")
    return notes
