"""`aigc-compress report`: results as a page to look at and hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigc_compress.console import show, show_json
from aigc_compress.storage import require_writable, write_bytes

from . import options as common

__all__ = ["report"]


def report(
    results: Annotated[list[Path], typer.Argument(help="JSON files that bench -o wrote")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="the page", show_default="report.html; with --json none"
        ),
    ] = None,
    json: common.Json = False,
) -> None:
    """Make one self-contained HTML page from results of bench and of the peers.

    The page loads nothing, runs no script, and reads well on a phone and in the dark. Results of
    the peers begin with a table: a row per peer, a column per model.

    Examples:
        aigc-compress bench gan.onnx gan.int8.onnx -o gan.json

        aigc-compress report gan.json -o report.html

        aigc-compress report peers-*.json --json
    """
    from aigc_compress.bench.report import read_document, render_report, report_document

    page = output if json else output or Path("report.html")
    if page is not None:
        require_writable(page)
    documents = [read_document(path) for path in results]
    if page is not None:
        write_bytes(page, render_report(documents).encode())
    if json:
        show_json(report_document(documents))
    else:
        show(str(page))
