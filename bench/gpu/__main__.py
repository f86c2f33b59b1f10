"""`python -m aigc_compress.bench.gpu`: models in FP32, FP16 and INT8 on every engine of a GPU."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from aigc_compress.artifact import save_onnx
from aigc_compress.bench_result import BenchOptions
from aigc_compress.benching import bench_models
from aigc_compress.building import EngineOptions, graph_for_engine
from aigc_compress.cli import options as common
from aigc_compress.console import progress, say, show, to_json
from aigc_compress.engines import ENGINES
from aigc_compress.errors import AigcCompressError, NotOnThisMachineError, PassError
from aigc_compress.models import REFERENCES
from aigc_compress.passes.tensorrt import Precision
from aigc_compress.storage import read_json, require_writable, write_bytes

__all__ = ["SCHEMA", "app", "gpu_engines", "main", "markdown_table"]

SCHEMA = "aigc-compress/bench-gpu/1"
COMMAND = "python -m aigc_compress.bench.gpu -o"
# FP8 is not among them: ONNX Runtime, which takes part too, loses a Relu before it.
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
FIRST = "torch-cuda"  # the baseline: eager, as a model leaves its training

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def gpu(
    models: Annotated[
        list[str] | None,
        typer.Argument(help=".pt or .onnx files [the references]; with --markdown, .json of -o"),
    ] = None,
    batch: Annotated[str, typer.Option(help="samples of a timed call, or several")] = "1,32",
    length: Annotated[str, typer.Option(help="time steps of a timed call, or several")] = "1",
    processes: common.Processes = 3,
    samples: common.Samples = None,
    quality: Annotated[bool, typer.Option(help="measure quality too")] = True,
    seed: common.Seed = 0,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="the JSON document, written after every model")
    ] = Path("gpu.json"),
    markdown: Annotated[
        bool, typer.Option("--markdown", help="measure nothing: print documents as tables")
    ] = False,
) -> None:
    """Time models on every engine that runs on this GPU, by the GPU's own clock.

    Each model takes part in FP32, FP16 and INT8 as TensorRT reads them; the baseline is torch in
    eager mode. Engines that are missing are named with their reason.

    Examples:
        python -m aigc_compress.bench.gpu -o gpu.json

        python -m aigc_compress.bench.gpu net.onnx --batch 1,8 -o net.json

        python -m aigc_compress.bench.gpu --markdown gpu.json
    """
    if markdown:
        for name in models or []:
            show(markdown_table(read_json(Path(name), SCHEMA, COMMAND)))
        return
    require_writable(output)
    present, missing = gpu_engines()
    for told in missing:
        say(told)
    options = BenchOptions(
        engines=present,
        batches=common.whole_numbers(batch, "--batch"),
        lengths=common.whole_numbers(length, "--length"),
        samples=samples,
        measures_quality=quality,
        leaves_out=True,
        seed=seed,
        plan=common.latency_plan(1, processes, seed, clock="device"),
    )
    done: list[dict[str, Any]] = []
    for name in models or [*REFERENCES]:
        try:
            done.append({"model": name, **_measured(name, options)})
        except PassError as error:
            missing.append(f"{name}: {error}")
            say(missing[-1])
        document = {"schema": SCHEMA, "missing": missing, "models": done}
        write_bytes(output, (to_json(document) + "\n").encode())
    show(markdown_table({"models": done, "missing": missing}))
    if not done:
        raise PassError("No model could be measured (reasons above).")


def _measured(name: str, options: BenchOptions) -> dict[str, Any]:
    """Return one model's document of `bench`; engines that fail on a graph are left out, named."""
    with tempfile.TemporaryDirectory() as folder:
        files, refused = _in_every_precision(name, Path(folder))
        with progress(f"bench {name}") as on_step:
            result = bench_models([name, *files], options, on_step=on_step).document()
    for row in result["rows"]:
        row["model"] = Path(row["model"]).name
    result["notes"] = [note.replace(f"{folder}/", "") for note in [*result["notes"], *refused]]
    return result


def _in_every_precision(name: str, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the graphs that TensorRT takes in FP16 and INT8; return them and what was refused."""
    files, refused = [], []
    for precision in PRECISIONS:
        try:
            options = EngineOptions(precision=precision, judges=False)
            graph = graph_for_engine(name, options).graph
        except PassError as error:
            refused.append(f"{name} in {precision}: {error}")
            continue
        files.append(folder / f"{Path(name).stem}.{precision}.onnx")
        save_onnx(graph, files[-1])
    return files, refused


def gpu_engines() -> tuple[tuple[str, ...], list[str]]:
    """Return the engines that run on a GPU here, eager torch first, and why others do not.

    Raises:
        NotOnThisMachineError: there is none.
    """
    names = [name for name, engine in ENGINES.items() if engine.is_on_gpu]
    found = {name: ENGINES[name].availability() for name in names}
    present = [name for name, each in found.items() if each.is_available]
    missing = [f"{n}: {each.detail}" for n, each in found.items() if not each.is_available]
    if FIRST not in present:
        raise NotOnThisMachineError(f"Nothing can be measured here: {found[FIRST].detail}.")
    return (FIRST, *(name for name in present if name != FIRST)), missing


def markdown_table(document: Mapping[str, Any]) -> str:
    """Return the tables of a document: one per model, rows by size and speed."""
    parts = []
    for each in document["models"]:
        machine = each["machine"]
        rows = sorted(each["rows"], key=lambda row: (row["batch"], row["length"]))
        lines = [
            f"**{each['model']}** on {machine['gpu']}, CUDA {machine['cuda']}, torch"
            f" {machine['torch']}:",
            "",
            "| batch | model | engine | ms | speed | samples per second | quality |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(_line(row) for row in rows),
            "",
            *(f"- {note}" for note in each["notes"]),
        ]
        parts.append("\n".join(lines))
    parts += ["\n".join(f"- left out: {told}" for told in document["missing"])]
    return "\n\n".join(part for part in parts if part)


def _line(row: Mapping[str, Any]) -> str:
    speed = row["speedup"]
    interval = f"{speed['ratio']:.2f}x [{speed['low']:.2f}, {speed['high']:.2f}]"
    size = f"{row['batch']} x {row['length']}" if row["length"] > 1 else f"{row['batch']}"
    cells = [
        *(size, row["model"], row["engine"], f"{row['latency_ms']:.4f}"),
        f"A/A {interval}" if row["is_baseline"] else interval,
        f"{row['samples_per_second']:,.0f}",
        _quality(row["quality"]),
    ]
    return f"| {' | '.join(cells)} |"


def _quality(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return ""
    return f"{told['metric']} {told['value']:.4g}"


def main() -> None:
    """Run the command; failures end with one line and their exit code."""
    try:
        app()
    except AigcCompressError as error:
        say(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
