"""`export --engine trt`: a TensorRT engine from any model, with a card beside it.

An engine file is what TensorRT alone can read; the card says what it is, what it was made of, and
where it runs. Neither is trusted without the other.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import __version__
from .api import require_output, to_onnx
from .artifact import Artifact, graph_tensors, onnx_bytes
from .budget import Budget
from .engine_int8 import Int8Choice, Int8Judge, choose_int8
from .engines import ENGINES
from .engines.cuda import gpu_target
from .engines.trt import (
    LARGEST_BATCH,
    BuildOptions,
    Sizes,
    build_engine,
    builder_version,
    check_engine,
)
from .errors import InputFileError, NotOnThisMachineError, PassError, UsageError, first_line
from .loading import load_artifact
from .passes import Context, DequantizeConfig, FoldConfig, TensorRtConfig
from .passes.operators import BORDERS
from .passes.quantize.config import RangeMethod
from .passes.tensorrt import OLDEST_OPSET, PRECISIONS, Precision, lint, sparse_layers
from .pipeline import run_passes
from .storage import digest_file, read_json, write_bytes
from .task import OnStep, quiet
from .workload import FeedOptions, TaskWorkload, Workload, make_workload

__all__ = [
    "PRECISIONS",
    "BuiltEngine",
    "EngineGraph",
    "EngineOptions",
    "build",
    "card_path",
    "graph_for_engine",
    "parse_profiles",
    "read_card",
    "try_builds",
    "why_not_here",
]

SCHEMA = "aigc-compress/engine/1"
CALIBRATION_SETS = 64
FIRST_WITH_FP8 = 89  # compute capability


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is built with.

    Attributes:
        precision: fp32, fp16, or int8 or fp8 for layers with weights.
        device: `portable`, or a compute capability like `sm_89`.
        profiles: least, usual and most sizes of inputs with dynamic axes; else as feeds have them.
        ranges: where the range of an activation ends, in 8 bits; None: chosen by the quality
            on validation data, and with it the layers that must stay float.
        keep_float: names of nodes that stay float32.
        judges: whether the quality in 8 bits is measured; if not, ranges of None mean `minmax`.
        budget: what a graph in 8 bits may lose; None: the metric's default.
        samples: samples of a quality measurement; None: the task's default.
        feeds: calibration and evaluation feeds for a model without a task.
        seed: of calibration feeds and of quality.
    """

    precision: Precision = "fp16"
    device: str = "portable"
    profiles: Mapping[str, Sizes] = field(default_factory=dict)
    ranges: RangeMethod | None = None
    keep_float: tuple[str, ...] = ()
    judges: bool = True
    budget: Budget | None = None
    samples: int | None = None
    feeds: FeedOptions = field(default_factory=FeedOptions)
    seed: int = 0


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and its card.

    Attributes:
        plan: the serialized engine.
        card: what stands beside it, ready for JSON.
        notes: what the user should know about the feeds.
    """

    plan: bytes
    card: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def build(
    source: str | Path,
    options: EngineOptions | None = None,
    output: Path | None = None,
    *,
    on_step: OnStep = quiet,
) -> BuiltEngine:
    """Build a TensorRT engine; with an output, write it and its card.

    Args:
        source: a reference's name, a `.pt` or an `.onnx` file in floating point.
        options: see EngineOptions.
        output: the `.engine` to write, with a `.engine.json` beside it; None: nothing is written.
        on_step: called with (done, total) while feeds are read.

    Raises:
        NotOnThisMachineError: TensorRT is not installed.
        UsageError: the source, a device or a profile is wrong.
        PassError: TensorRT refuses the graph.
        OutputError: a file cannot be written.
    """
    options = options or EngineOptions()
    if output is not None:
        require_output(output, source, suffix=".engine")
    package, version = builder_version()
    if options.precision == "fp8" and _is_before_fp8(options.device):
        raise UsageError(f"{options.device} has no FP8, which came with sm_89. Use int8 or fp16.")
    found = graph_for_engine(source, options, on_step, checks=True)
    graph, how = found.graph, BuildOptions(options.device, found.profiles)
    before = time.monotonic()
    plan = build_engine(onnx_bytes(graph), how)
    seconds = time.monotonic() - before
    inputs, outputs = graph_tensors(graph.payload)
    card = {
        "schema": SCHEMA,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "size_bytes": len(plan),
        "builder": {"package": package, "version": version},
        "device": options.device,
        "precision": options.precision,
        "build_seconds": round(seconds, 3),
        "inputs": [asdict(each) for each in inputs],
        "outputs": [asdict(each) for each in outputs],
        "profiles": {name: [*map(list, sizes)] for name, sizes in found.profiles.items()},
        "sparse_layers": sparse_layers(graph.payload),
        "source_sha256": graph.source_sha256,
        "task": graph.task,
        "history": [asdict(step) for step in graph.history],
        **graph.history[-1].numbers,
        "quality": found.choice and found.choice.document(),
        "made_by": f"aigc-compress {__version__}",
    }
    if output is not None:
        write_bytes(card_path(output), (json.dumps(card, indent=2) + "\n").encode())
        write_bytes(output, plan)
    return BuiltEngine(plan, card, found.notes)


def try_builds(
    sources: Sequence[str | Path],
    precisions: Sequence[Precision] = PRECISIONS,
    options: EngineOptions | None = None,
    *,
    on_step: OnStep = quiet,
) -> list[dict[str, Any]]:
    """Build every model in every precision, write nothing, and tell time, size or what failed.

    INT8 and FP8 are not judged: where ranges end hardly matters to time and size.

    Raises:
        NotOnThisMachineError: TensorRT is not installed.
        UsageError: a source is wrong.
    """
    builder_version()
    options = options or EngineOptions()
    rows: list[dict[str, Any]] = []
    jobs = [(source, precision) for source in sources for precision in precisions]
    for source, precision in jobs:
        on_step(len(rows), len(jobs))
        row: dict[str, Any] = {"model": str(source), "precision": precision, "refused": None}
        try:
            card = build(source, replace(options, precision=precision, judges=False)).card
            row |= {key: card[key] for key in ("build_seconds", "size_bytes", "sqnr_db", "builder")}
        except PassError as error:
            row["refused"] = first_line(error)
        rows.append(row)
    return rows


@dataclass(frozen=True)
class EngineGraph:
    """A graph that TensorRT takes.

    Attributes:
        graph: an ONNX artifact.
        profiles: sizes of its inputs, the user's and those that the feeds have.
        choice: how it was chosen and how good it is, where it is in 8 bits and was judged.
        notes: what is to be said of the feeds and the quality.
    """

    graph: Artifact
    profiles: Mapping[str, Sizes]
    choice: Int8Choice | None = None
    notes: tuple[str, ...] = ()


def graph_for_engine(
    source: str | Path,
    options: EngineOptions,
    on_step: OnStep = quiet,
    *,
    checks: bool = False,
) -> EngineGraph:
    """Return the graph that TensorRT takes.

    Args:
        source: as for `build`.
        options: see EngineOptions.
        on_step: as for `build`.
        checks: whether TensorRT is asked about the graph in FP32 before minutes of search.

    Raises:
        UsageError: the source is wrong; with `checks`, a device or profile too.
        PassError: the graph cannot be brought to this precision.
    """
    artifact = load_artifact(source)
    workload = make_workload(artifact, options.feeds)
    config = TensorRtConfig(
        precision=options.precision,
        ranges=options.ranges or "minmax",
        keep_float=options.keep_float,
    )
    feeds = workload.calibration(seed=options.seed) if config.is_quantized else ()
    calibration = feeds[:CALIBRATION_SETS]
    context = Context(workload.check_feeds(), calibration, options.seed, on_step=on_step)
    graph, told = _on_floats(
        to_onnx(artifact, workload, seed=options.seed),
        context,
        takes_int8=options.precision != "fp8",
    )
    profiles, about_sizes = _profiles(graph, workload, options)
    told = (*told, *about_sizes)
    folding = FoldConfig(opset=OLDEST_OPSET) if options.precision == "fp8" else FoldConfig()
    folded = run_passes(graph, [("fold", folding)], context)
    if not (config.is_quantized and options.judges):
        legal = run_passes(folded, [("tensorrt", config)], context)
        about_feeds = workload.calibration_notes if config.is_quantized else ()
        return EngineGraph(legal, profiles, notes=(*told, *about_feeds))
    if checks:
        check_engine(onnx_bytes(folded), BuildOptions(options.device, profiles))
    judge = Int8Judge(folded, workload, context, budget=options.budget, samples=options.samples)
    searches = options.ranges is None
    choice = choose_int8(folded, config, context, judge, searches=searches)
    notes = [*told, *workload.notes, *workload.calibration_notes]
    notes += workload.search_notes(samples=options.samples) if searches else ()
    if not choice.judgement.within:
        tried = " with any range, and any number of float layers that was tried" if searches else ""
        notes.append(
            f"{options.precision.upper()} is outside the quality budget{tried}: use --precision"
            " fp16, or give more with --max-drop or --min-sqnr."
        )
    return EngineGraph(choice.graph, profiles, choice, (*dict.fromkeys(notes),))


def _profiles(
    graph: Artifact, workload: Workload, options: EngineOptions
) -> tuple[dict[str, Sizes], tuple[str, ...]]:
    """Return the sizes of inputs that the engine is built for, and what to say of them.

    Dynamic axes other than a batch keep the size that a user's feeds have, or that was found by
    trial: models that read pieces of one length run with no other. A size of 1 tells nothing.
    """
    found = dict(options.profiles)
    if isinstance(workload, TaskWorkload):
        return found, ()
    inputs, _ = graph_tensors(graph.payload)
    batch = {each.shape[0] for each in inputs if each.shape}
    feeds = workload.timing_feeds(batch=1, length=1, seed=options.seed)
    told = {  # by axis, so that inputs agree
        axis: row
        for spec in inputs
        if spec.name in found
        for axis, row in zip(spec.shape, zip(*found[spec.name], strict=True), strict=False)
    }
    kept = []
    for spec in inputs:
        if spec.name in found:
            continue
        rows = []
        for axis, size in zip(spec.shape, feeds[spec.name].shape, strict=True):
            is_dynamic = isinstance(axis, str) and axis not in told
            if is_dynamic and axis not in batch and size != 1:
                kept.append(f"{axis} is {size}")
            is_free = is_dynamic and (axis in batch or size == 1)
            free = (1, size, max(LARGEST_BATCH, size))
            rows.append(told.get(axis, free if is_free else (size, size, size)))
        least, usual, most = zip(*rows, strict=True) if rows else ((), (), ())
        found[spec.name] = (least, usual, most)
    if not kept:
        return found, ()
    sizes = ", ".join(dict.fromkeys(kept))
    return found, (
        f"In this engine {sizes}, as in the feeds or in noise that the model runs with; --profile"
        " sets other sizes.",
    )


def _on_floats(
    graph: Artifact, context: Context, *, takes_int8: bool
) -> tuple[Artifact, tuple[str, ...]]:
    """Return a graph that TensorRT would refuse for its integers on floats, and what to say.

    Args:
        graph: as it was given.
        context: check feeds.
        takes_int8: whether integers that TensorRT takes may stay.
    """
    has_borders = any(node.op_type in BORDERS for node in graph.payload.graph.node)
    if not lint(graph.payload) and (takes_int8 or not has_borders):
        return graph, ()
    try:
        floats = run_passes(graph, [("dequantize", DequantizeConfig())], context)
    except PassError:  # what it is refused for is told later
        return graph, ()
    numbers = floats.history[-1].numbers
    gone = ", ".join(f"{count} {op}" for op, count in numbers["gone"].items())
    return floats, (
        f"The model is quantized for another engine. It was taken back to floats first ({gone}),"
        f" {numbers['sqnr_db']:.1f} dB from it; what follows is told beside these floats.",
    )


def card_path(engine: Path) -> Path:
    """Return where an engine's card stands."""
    return engine.with_name(f"{engine.name}.json")


def read_card(engine: Path) -> dict[str, Any]:
    """Return an engine's card.

    Raises:
        InputFileError: engine or card are missing, or do not belong together.
    """
    if not engine.is_file():
        raise InputFileError(f"There is no file {engine}.")
    card = read_json(card_path(engine), SCHEMA, "aigc-compress export --engine trt")
    if card.get("sha256") != digest_file(engine):
        raise InputFileError(
            f"{engine} is not the engine that {card_path(engine).name} tells of. Export it again."
        )
    return card


def why_not_here(card: Mapping[str, Any]) -> str | None:
    """Return what keeps an engine from running on this machine, or None."""
    wanted = card["builder"]
    try:
        package, version = builder_version()
    except NotOnThisMachineError as error:
        return str(error)
    if (package, version) != (wanted["package"], wanted["version"]):
        return (
            f"It was built by {wanted['package']} {wanted['version']}, and here is {package}"
            f" {version}: engines run on the very version that built them. Export it again."
        )
    found = ENGINES["trt"].availability()
    if not found.is_available:
        return f"{found.detail[0].upper()}{found.detail[1:]}."
    here = gpu_target()
    if card["precision"] == "fp8" and _is_before_fp8(here):
        return f"It computes in FP8, which came with sm_89, and this GPU is {here}."
    if card["device"] not in ("portable", here):
        return f"It was built for {card['device']}, and this GPU is {here}. Export it again."
    return None


def _is_before_fp8(device: str) -> bool:
    number = device.removeprefix("sm_")
    return number.isdigit() and int(number) < FIRST_WITH_FP8


def parse_profiles(texts: Sequence[str]) -> dict[str, Sizes]:
    """Return profiles from `input=1,3,64,64:1,3,224,224:8,3,512,512`; raises UsageError."""
    found: dict[str, Sizes] = {}
    for text in texts:
        name, is_there, rows = text.partition("=")
        try:
            least, usual, most = (tuple(map(int, row.split(","))) for row in rows.split(":"))
        except ValueError as error:
            raise UsageError(
                f"--profile {text!r} must read INPUT=LEAST:USUAL:MOST, each with all sizes, like"
                " image=1,3,64,64:1,3,224,224:8,3,512,512."
            ) from error
        if not (name and is_there and len(least) == len(usual) == len(most)):
            raise UsageError(f"--profile {text!r} must have as many sizes in each of its parts.")
        if any(not 0 < a <= b <= c for a, b, c in zip(least, usual, most, strict=True)):
            raise UsageError(f"--profile {text!r} must rise from part to part, beginning at 1.")
        found[name] = (least, usual, most)
    return found
