"""`aigc-compress doctor`: what this machine is, and what an engine would refuse of a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aigc_compress.console import say, show, show_json, show_table
from aigc_compress.errors import NotOnThisMachineError, UsageError

from . import options as common

__all__ = ["doctor"]

SHOWN = 3  # names of nodes with the same fault


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            help="a model to check for an engine, or an .engine", show_default="this machine"
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="trt: whose rules a model is checked by")] = "trt",
    json: common.Json = False,
) -> None:
    """Show processor, instruction sets, versions and engines; or what TensorRT refuses of a model.

    With a model, every node that TensorRT's parser or builder would refuse is listed with the rule
    and what would help; neither TensorRT nor a GPU is needed. The exit code is 1 if there is one.
    With an .engine it says whether this machine can run it, and exits with 3 if not.

    Examples:
        aigc-compress doctor

        aigc-compress doctor gan.onnx --engine trt

        aigc-compress doctor gan.engine
    """
    if model is None:
        _show_machine(json)
    elif model.endswith(".engine"):
        _check_engine(Path(model), json)
    else:
        _check(model, engine, json)


def _check_engine(path: Path, json: bool) -> None:
    from aigc_compress.building import read_card, why_not_here

    card = read_card(path)
    reason = why_not_here(card)
    if json:
        show_json(
            {"schema": "aigc-compress/doctor-engine/1", "engine": str(path)}
            | {"runs_here": reason is None, "reason": reason, "card": card}
        )
        raise typer.Exit(0 if reason is None else NotOnThisMachineError.exit_code)
    if reason is not None:
        raise NotOnThisMachineError(f"{path} cannot run here. {reason}")
    show(f"{path} runs here.")


def _check(model: str, engine: str, json: bool) -> None:
    from aigc_compress.api import to_onnx
    from aigc_compress.loading import load_artifact
    from aigc_compress.passes.tensorrt import lint
    from aigc_compress.workload import FeedOptions, make_workload

    if engine != "trt":
        raise UsageError(
            f"Only trt has rules to check a model by, not {engine}; other engines tell when they"
            " load one: aigc-compress bench MODEL --engine ..."
        )
    graph = load_artifact(model)
    if graph.stage != "onnx":
        graph = to_onnx(graph, make_workload(graph, FeedOptions()))
    found = lint(graph.payload)
    if json:
        nodes = [asdict(each) for each in found]
        show_json(
            {"schema": "aigc-compress/doctor-model/1", "model": model, "engine": engine}
            | {"is_accepted": not found, "nodes": nodes}
        )
    elif found:
        groups: dict[tuple[str, ...], list[str]] = {}
        for each in found:
            groups.setdefault((each.op, each.reason, each.help, each.stage), []).append(each.node)
        rows = [
            [op, str(len(nodes)), why, helps, stage, ", ".join(nodes[:SHOWN])]
            for (op, why, helps, stage), nodes in groups.items()
        ]
        names = ["operator", "nodes", "why", "what helps", "refused by its", "the first of them"]
        show_table(f"what TensorRT refuses of {model}", names, rows)
    else:
        show(f"TensorRT takes {model}.")
    if found:
        say(f"TensorRT would refuse {len(found)} of {len(graph.payload.graph.node)} nodes.")
        raise typer.Exit(1)


def _show_machine(json: bool) -> None:
    from aigc_compress.engines import ENGINES
    from aigc_compress.machine import describe_machine, machine_scheme

    machine, scheme = describe_machine(), machine_scheme()
    found = {name: engine.availability() for name, engine in ENGINES.items()}
    if json:
        engines = {name: asdict(each) for name, each in found.items()}
        document = {"schema": "aigc-compress/doctor/1", "machine": machine, "engines": engines}
        show_json({**document, "scheme": {"name": scheme.name, **scheme.settings}})
        return
    versions = machine.pop("versions")
    rows = [[key, ", ".join(v) if isinstance(v, list) else str(v)] for key, v in machine.items()]
    told = (
        f"{scheme.name} ({scheme.told}): {scheme.activations} activations, {scheme.weight_bits}-bit"
    )
    told += f" {scheme.weights} weights. {scheme.reason}."
    if machine["flags"] is None:
        told += " The processor is not known: pip install 'aigc-compress[compress]'."
    show_table("machine", ["", "value"], [*rows, ["INT8 scheme", told]])
    show_table(
        "packages", ["package", "version"], [[n, v or "missing"] for n, v in versions.items()]
    )
    rows = [
        [name, "present" if each.is_available else "missing", each.detail, each.install]
        for name, each in found.items()
    ]
    show_table("engines", ["engine", "state", "detail", "how to get it"], rows)
