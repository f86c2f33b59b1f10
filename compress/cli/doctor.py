"""`aigc-compress doctor`: what this machine is and which engines it has."""

from __future__ import annotations

from dataclasses import asdict

from aigc_compress.console import show_json, show_table

from . import options as common

__all__ = ["doctor"]


def doctor(json: common.Json = False) -> None:
    """Show processor, instruction sets, threads, versions, and engines present or missing.

    Example: aigc-compress doctor
    """
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
