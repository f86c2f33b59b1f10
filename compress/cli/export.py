"""`aigc-compress export`: torch to ONNX, a TensorRT engine, a Triton repository, a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from aigc_compress.console import progress, say, show, show_json
from aigc_compress.errors import UsageError

from . import options as common

__all__ = ["export"]

COMMON = {"model", "output", "json"}
FEEDS = {"calibration", "feed", "shape", "seed"}


def export(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="gan, cnn, rnn, rnn-gru, a .pt, an .onnx or, to web, an .aigc file"),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="file or folder to write",
            show_default="MODEL.onnx, .engine, site",
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="trt: build a TensorRT engine", show_default="an ONNX graph")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="triton: a repository for Triton Inference Server; web: a page of a bundle"
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="triton: name of the model", show_default="the file's")
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(min=17, max=23, help="ONNX operator set, for a graph", show_default="20"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="trt: fp32, fp16, or int8 or fp8 for layers with weights", show_default="fp16"
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="trt: portable, or a compute capability like sm_89")
    ] = "portable",
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="trt: sizes of an input, least:usual:most, like x=1,3,64,64:1,3,96,96:8,3,128,128",
            show_default="first axis 1:1:64; of a model without a task, others as in its feeds",
        ),
    ] = None,
    keep_float: Annotated[
        list[str] | None, typer.Option(help="trt: a node that stays float32; may be repeated")
    ] = None,
    ranges: Annotated[
        str | None,
        typer.Option(
            help="trt, in 8 bits: where an activation's range ends: minmax, percentile,"
            " percentile-99.9, mse or entropy",
            show_default="by the quality, and with it the layers that stay float",
        ),
    ] = None,
    max_drop: common.MaxDrop = None,
    min_sqnr: common.MinSqnr = None,
    samples: common.Samples = None,
    calibration: common.Calibration = None,
    evaluation: common.Evaluation = None,
    feed: common.Feed = None,
    shape: common.Shape = None,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Export a torch model to ONNX with dynamic batch (and time), or any model to TensorRT.

    An ONNX file appears only after the graph gave torch's numbers at two batch sizes and lengths.
    A TensorRT engine is built with tensorrt or tensorrt-rtx, the latter without any GPU; beside it
    MODEL.engine.json tells what it is and where it runs. INT8 and FP8 are judged as the graph that
    TensorRT gets, in ONNX Runtime: ranges, and layers that stay float, are chosen to be within the
    budget. FP8 runs on compute capability 8.9 and newer.

    Examples:
        aigc-compress export gan.pt -o gan.onnx

        aigc-compress export gan --engine trt --precision int8 -o gan.engine

        aigc-compress export net.onnx --engine trt --device sm_89 --profile x=1,8:1,8:32,8

        aigc-compress export cnn.int8.onnx --to triton -o repository/

        aigc-compress export gan.aigc --to web -o site/
    """
    feeds = common.feed_options(calibration, evaluation, feed, shape)
    if to == "web":
        common.refuse_others(context, {*COMMON, "to"}, "--to web")
        _write_site(Path(model), output or Path("site"), json)
        return
    if to == "triton":
        common.refuse_others(context, {*COMMON, *FEEDS, "to", "name"}, "--to triton")
        _add_to_repository(model, output or Path("repository"), name, feeds, seed, json)
        return
    if to is not None:
        raise UsageError(f"--to {to}: it knows triton and web.")
    if engine is None:
        common.refuse_others(context, {*COMMON, "opset"}, "a graph, without --engine or --to")
        _export_graph(model, output or Path(f"{Path(model).stem}.onnx"), opset or 20, json)
        return
    if engine != "trt":
        raise UsageError(f"--engine {engine}: only trt has engines that are built beforehand.")
    from aigc_compress.building import PRECISIONS, EngineOptions, parse_profiles
    from aigc_compress.passes.quantize.config import RangeMethod
    from aigc_compress.passes.tensorrt import QUANTIZED

    trt = {"engine", "precision", "device", "profile", "keep_float"}
    if precision in QUANTIZED:
        trt |= {"ranges", "max_drop", "min_sqnr", "samples", "evaluation"}
    common.refuse_others(context, {*COMMON, *FEEDS, *trt}, "--engine trt")
    precision = precision or "fp16"
    if precision not in PRECISIONS:
        raise UsageError(f"--precision must be one of {', '.join(PRECISIONS)}, not {precision}.")
    if ranges is not None and ranges not in get_args(RangeMethod):
        raise UsageError(f"--ranges must be one of {', '.join(get_args(RangeMethod))}.")
    options = EngineOptions(
        precision=cast(Any, precision),
        device=device,
        profiles=parse_profiles(profile or ()),
        ranges=cast(Any, ranges),
        keep_float=tuple(keep_float or ()),
        budget=common.budget(max_drop, min_sqnr),
        samples=samples,
        feeds=feeds,
        seed=seed,
    )
    _build_engine(model, output or Path(f"{Path(model).stem}.engine"), options, json)


def _write_site(source: Path, folder: Path, json: bool) -> None:
    from aigc_compress.runtime.bundle import open_bundle
    from aigc_compress.web import write_site

    archive, manifest = open_bundle(source)
    archive.check()
    members = {name: archive.read(name) for name in archive.names}
    written, notes = write_site(manifest.document, members, folder)
    if json:
        document = {"schema": "aigc-compress/site/1", "output": str(written)}
        show_json({**document, "notes": list(notes)})
        return
    for note in notes:
        say(f"Note: {note}")
    say(f"To look at it: python -m http.server -d {written}")
    show(str(written))


def _export_graph(model: str, target: Path, opset: int, json: bool) -> None:
    from aigc_compress.api import export as run

    artifact = run(model, target, opset=opset)
    numbers = dict(artifact.history[-1].numbers)
    if json:
        show_json({"schema": "aigc-compress/export/1", "output": str(target), **numbers})
        return
    say(f"Largest difference to torch: {numbers['largest_relative_difference']:.1e} of the output.")
    show(str(target))


def _add_to_repository(
    model: str, repository: Path, name: str | None, feeds: Any, seed: int, json: bool
) -> None:
    from aigc_compress.serving import export_repository

    with progress(f"export {model}") as on_step:
        made = export_repository(
            model, repository, name=name, feeds=feeds, seed=seed, on_step=on_step
        )
    if json:
        document = {"schema": "aigc-compress/repository/1", "output": str(made.folder)}
        show_json(
            document
            | {"largest_batch": made.largest_batch}
            | {"samples_per_second": {str(k): v for k, v in made.samples_per_second.items()}}
        )
        return
    for batch, rate in made.samples_per_second.items():
        say(f"{rate:,.0f} samples a second at batch {batch}.")
    told = f"up to {made.largest_batch}" if made.largest_batch > 1 else "one by one"
    say(f"The server joins requests: {told}.")
    show(str(made.folder))


def _build_engine(model: str, target: Path, options: Any, json: bool) -> None:
    from aigc_compress.building import build
    from aigc_compress.passes.tensorrt import QUANTIZED

    with progress(f"export {model}") as on_step:
        built = build(model, options, target, on_step=on_step)
    card = built.card
    if json:
        show_json({**card, "output": str(target), "notes": list(built.notes)})
        return
    for note in built.notes:
        say(f"Note: {note}")
    operators, precision = card["operators"], card["precision"]
    for kind in (precision, "float") if precision in QUANTIZED else ():
        told = ", ".join(f"{count} {op}" for op, count in operators[kind].items())
        if told:
            say(f"{'Not in' if kind == 'float' else 'In'} {precision}: {told}.")
    if card["sparse_layers"]:
        layers = len(card["sparse_layers"])
        say(f"{layers} {'layer has' if layers == 1 else 'layers have'} 2:4 sparse weights.")
    if built.card["quality"]:
        say(_quality_told(card["quality"], card["history"][-1]["config"]))
    say(
        f"{card['builder']['package']} {card['builder']['version']} built it for"
        f" {card['device']} in {card['build_seconds']:.1f} s: {card['size_bytes'] / 1e6:.2f} MB,"
        f" {card['precision']}, {card['sqnr_db']:.1f} dB from the source in ONNX Runtime."
    )
    show(str(target))


def _quality_told(quality: Any, settings: Any) -> str:
    baseline, is_sqnr = quality["baseline"], quality["baseline"] is None
    value = f"{quality['metric']} {quality['value']:.3f}"
    beside = f"at least {quality['budget']:.1f}" if is_sqnr else f"FP32 {baseline:.3f}"
    verdict = "within the budget" if quality["within"] else "OUTSIDE the budget"
    data = f"{quality['split']} data" if quality["split"] == "test" else quality["split"]
    kept = len(settings["keep_float"])
    layers = f", {kept} {'layer' if kept == 1 else 'layers'} left float" if kept else ""
    return (
        f"{value} ({beside}), {verdict}, on {data}, of {quality['of']};"
        f" ranges {settings['ranges']}{layers}."
    )
