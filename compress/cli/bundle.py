"""`aigc-compress bundle`: one file for an app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigc_compress.console import progress, say, show, show_json, show_table

from . import options as common
from .tables import size_text

__all__ = ["bundle"]


def bundle(
    models: Annotated[
        list[str], typer.Argument(help="a shipped model, .onnx or .pt; the preferred one first")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".aigc to write", show_default="MODEL.aigc"),
    ] = None,
    fallback: Annotated[
        str | None, typer.Option(help="the floating-point model, for where integers go wrong")
    ] = None,
    engine: Annotated[
        list[Path] | None, typer.Option(help="TensorRT engine with its card; may be repeated")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="of the bundle", show_default="the first model's")
    ] = None,
    packed: Annotated[
        bool, typer.Option("--pack", help="entropy-code the graphs: smaller to download")
    ] = False,
    timed: Annotated[
        bool, typer.Option("--time", help="measure latencies now, for `verify --time` to compare")
    ] = False,
    sign: Annotated[
        Path | None, typer.Option(help="ed25519 private key, PEM or 32 bytes, to sign with")
    ] = None,
    licence: Annotated[
        list[str] | None, typer.Option(help="what to say of licences; may be repeated")
    ] = None,
    calibration: common.Calibration = None,
    feed: common.Feed = None,
    shape: common.Shape = None,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Put a model's variants, their evidence and golden vectors into one file for an app.

    `aigc_compress.runtime.load` loads it with numpy and ONNX Runtime alone, and picks the first
    variant that gives on that device what it gave here. It is a plain zip; the same inputs give
    the same bytes.

    Examples:
        aigc-compress bundle gan-edge --fallback gan -o gan.aigc

        aigc-compress bundle model.int8.onnx --fallback model.onnx --sign key.pem --pack
    """
    from aigc_compress.bundling import BundleOptions
    from aigc_compress.bundling import bundle as run
    from aigc_compress.keys import read_private_key
    from aigc_compress.loading import resolve_source

    options = BundleOptions(
        fallback,
        tuple(engine or ()),
        name,
        common.feed_options(calibration, None, feed, shape),
        packed,
        timed,
        None if sign is None else read_private_key(sign),
        tuple(licence or ()),
        seed,
    )
    stem = resolve_source(models[0]).name.removesuffix(".xz").removesuffix(".onnx")
    target = output or Path(stem.removesuffix(".pt") + ".aigc")
    with progress(f"bundle {models[0]}") as on_step:
        made = run(models, target, options, on_step=on_step)
    if json:
        sizes = {"output": str(target), "size_bytes": len(made.content)}
        show_json({**sizes, "manifest": made.manifest, "notes": list(made.notes)})
        return
    rows = [
        [
            each["name"],
            each["engine"],
            each["precision"],
            size_text(each["size_bytes"]),
            "-" if each["latency_ms"] is None else f"{each['latency_ms']:.3f}",
            " or ".join(each["needs"].get("x86_64", ())) or "-",
        ]
        for each in made.manifest["variants"]
    ]
    head = ["variant", "engine", "precision", "size", "ms", "needs"]
    show_table(f"{target}, {size_text(len(made.content))}", head, rows)
    for note in made.notes:
        say(f"Note: {note}")
    show(str(target))
