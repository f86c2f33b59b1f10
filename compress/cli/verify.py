"""`aigc-compress verify`: a bundle proves itself on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigc_compress.console import say, show, show_json, show_table

from . import options as common

__all__ = ["verify"]


def verify(
    bundle: Annotated[Path, typer.Argument(help=".aigc")],
    key: Annotated[
        Path | None, typer.Option(help="ed25519 public key, PEM or 32 bytes, that signed it")
    ] = None,
    timed: Annotated[
        bool, typer.Option("--time", help="time a call, beside what was recorded")
    ] = False,
    threads: common.Threads = 1,
    json: common.Json = False,
) -> None:
    """Check every byte of a bundle, its signature, and what its variants give on this device.

    Exit codes: 0 verified; 1 nothing in it gives here what it gave where it was made; 2 it is
    damaged, was changed, or is not signed by the key; 3 its signature cannot be checked here.

    Examples:
        aigc-compress verify gan.aigc --time

        aigc-compress verify gan.aigc --key vendor.pub.pem
    """
    from aigc_compress.keys import read_public_key
    from aigc_compress.runtime.verifying import verify as run

    public = None if key is None else read_public_key(key)
    found = run(bundle, key=public, is_timed=timed, threads=threads)
    if json:
        show_json(found.document())
    else:
        head, rows = ["variant", "agreement", "needed", "verdict"], []
        for variant, check in zip(found.manifest.variants, found.checks, strict=True):
            seen = _agreement(check.agreement_db)
            row = [variant.name, seen, f"{variant.least_db:g} dB", check.reason or "verified"]
            timing = found.timings.get(variant.name)
            if timed:
                ratio = timing and timing.ratio
                recorded = f"{ratio:.2f}x of the recorded" if ratio else "nothing recorded"
                row += (
                    ["-", "-", "-"]
                    if timing is None
                    else [f"{timing.median_ms:.3f}", f"{timing.p90_ms:.3f}", recorded]
                )
            rows.append(row)
        show_table(str(bundle), head + (["ms", "p90 ms", "time"] if timed else []), rows)
        signed = f"signed by {found.signed_by}" if found.signed_by else "not signed"
        if found.signed_by and key is None:
            signed += ", which nobody vouches for here: --key names the key that it must be"
        say(f"Every byte is as it was written; {signed}.")
    if found.variant is None:
        say("Error: no variant gives on this device what it gave where the bundle was made.")
        raise typer.Exit(1)
    if not json:
        show(f"verified: {found.variant} runs here")


def _agreement(found_db: float | None) -> str:
    from aigc_compress.runtime.bundle import EQUAL_DB

    if found_db is None:
        return "-"
    return "equal" if found_db >= EQUAL_DB else f"{found_db:.1f} dB"
