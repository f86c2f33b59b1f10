"""The variants of a bundle: graphs and engines, what they give here, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.bench.meter import QuickMeter

from .api import to_onnx
from .artifact import Artifact, TensorSpec, graph_tensors, onnx_bytes
from .building import read_card
from .engines.ort import OrtSession
from .errors import InputFileError
from .loading import load_artifact, resolve_source
from .packed import packed
from .passes.operators import operators_at_run_time
from .passes.saturation import find_saturation
from .running import CARD_SCHEMA
from .storage import read_json
from .task import Deployable, Feeds, Use
from .workload import FeedOptions, TaskWorkload, Workload, make_workload

__all__ = [
    "Variant",
    "engine_entry",
    "file_stem",
    "golden_set",
    "graph_entry",
    "make_variant",
    "unique_names",
]

# Kernels of other processors round otherwise, and a rounding that flips moves an integer by one.
LEAST_DB = {"int8": 30.0, "float": 60.0}
ENGINE_DB = {"fp32": 40.0, "fp16": 30.0, "int8": 15.0}
SETS = ((1, 1), (3, 5))  # samples and time steps of the golden sets
WITH_VNNI = ("avx512_vnni", "avx_vnni")
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Variant:
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

    def fed(self, at: int) -> list[NDArray[Any]]:
        """Return the inputs of a golden set, in their order."""
        return [self.feeds[at][each.name] for each in graph_tensors(self.artifact.payload)[0]]

    def given(self, at: int) -> list[NDArray[Any]]:
        """Return the outputs of a golden set, in their order."""
        return [self.outputs[at][each.name] for each in graph_tensors(self.artifact.payload)[1]]

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


def make_variant(
    source: str | Path, given: FeedOptions, *, seed: int, is_timed: bool = False
) -> Variant:
    """Return a model as a variant: its graph, golden feeds, and what it gives for them here.

    Raises:
        UsageError: the source or the feeds are wrong.
        PassError: it does not run on its feeds.
    """
    artifact = load_artifact(source)
    path = resolve_source(source)
    workload = make_workload(artifact, given)
    graph = to_onnx(artifact, workload, seed=seed)
    session = OrtSession(graph, threads=1)
    feeds = _golden_feeds(workload, seed)
    outputs = tuple(session.run(each) for each in feeds)
    use = None
    if isinstance(workload, TaskWorkload) and isinstance(workload.task, Deployable):
        use = workload.task.use()
    latency = None
    if is_timed:
        latency = QuickMeter(seed=seed).milliseconds([graph], feeds[0])[0]
    return Variant(file_stem(path), path, graph, workload, use, feeds, outputs, latency)


def file_stem(path: Path) -> str:
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


def unique_names(names: Sequence[str]) -> list[str]:
    """Return names in their order, with numbers behind those that were taken."""
    taken: list[str] = []
    for name in names:
        free, count = name, 1
        while free in taken:
            count += 1
            free = f"{name}-{count}"
        taken.append(free)
    return taken


def graph_entry(
    variant: Variant, face: Mapping[str, Any], members: dict[str, bytes], *, is_packed: bool
) -> dict[str, Any]:
    """Return what the manifest says of a variant, and put its graph into the members.

    Args:
        variant: an ONNX graph.
        face: inputs, outputs and processing of the bundle, which are not said again.
        members: contents by name.
        is_packed: whether the graph is entropy-coded.
    """
    graph, content = variant.artifact.payload, onnx_bytes(variant.artifact)
    member = f"models/{variant.name}.onnx" + (".xz" if is_packed else "")
    members[member] = packed(content) if is_packed else content
    precision = "int8" if operators_at_run_time(graph)["int8"] else "float"
    saturates = any(each.is_possible for each in find_saturation(graph))
    evidence = _evidence(variant)
    return {
        "name": variant.name,
        "engine": "ort",
        "model": member,
        "precision": precision,
        "needs": {"x86_64": [*WITH_VNNI]} if saturates else {},
        "least_db": LEAST_DB[precision],
        "latency_ms": variant.latency_ms or evidence.get("latency_ms", {}).get("after"),
        "size_bytes": len(content),
        "evidence": evidence,
        "history": [asdict(step) for step in variant.artifact.history],
        **_own_face(variant, face),
    }


def _own_face(variant: Variant, face: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if value == face[key] else value for key, value in variant.face.items()}


def _evidence(variant: Variant) -> dict[str, Any]:
    """Return how a variant was measured: by its card where it has one, else by its history."""
    card = _card(variant)
    if card:
        quality = {k: v for k, v in (card["quality"] or {}).items() if k != "exhibit"}
        return {**{key: card[key] for key in ("speedup", "smaller", "machine")}, "quality": quality}
    measured = [each.numbers for each in variant.artifact.history if each.name == "measure"]
    if not measured or measured[-1].get("engine", "ort") != "ort":
        return {}  # what another engine took says nothing of the runtime's
    wanted = ("verdict", "speedup", "latency_ms", "threads", "quality")
    return {key: measured[-1][key] for key in wanted if key in measured[-1]}


def _card(variant: Variant) -> Mapping[str, Any]:
    """Return the card that a recipe's run left beside this very file; empty where there is none."""
    try:
        told = read_json(variant.source.with_suffix(".json"), CARD_SCHEMA, "aigc-compress run")
    except InputFileError:  # another file of that name is none of our business
        return {}
    return told if told.get("sha256") == variant.artifact.source_sha256 else {}


def golden_set(at: int, variants: Sequence[Variant], members: dict[str, bytes]) -> dict[str, Any]:
    """Return what the manifest says of a golden set, and put its arrays into the members."""
    inputs = variants[0].fed(at)
    own, outputs = {}, {}
    for each in variants:
        if not all(map(np.array_equal, each.fed(at), inputs)):
            own[each.name] = _stored(f"golden/{at}/{each.name}/input", each.fed(at), members)
        outputs[each.name] = _stored(f"golden/{at}/{each.name}/output", each.given(at), members)
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


def engine_entry(
    path: Path,
    name: str,
    variants: Sequence[Variant],
    golden: Sequence[dict[str, Any]],
    members: dict[str, bytes],
) -> dict[str, Any]:
    """Return what the manifest says of a TensorRT engine, and put it into the members.

    It takes the feeds of the last of the variants, the floating-point one where there is one, and
    is to give its outputs.
    """
    card, last = read_card(path), variants[-1]
    members[f"engines/{name}.engine"] = path.read_bytes()
    members[f"engines/{name}.engine.json"] = (json.dumps(card, indent=1) + "\n").encode()
    for each in golden:
        each["outputs"][name] = each["outputs"][last.name]
        if last.name in each["own_inputs"]:
            each["own_inputs"][name] = each["own_inputs"][last.name]
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
        **_own_face(last, variants[0].face),
    }
