"""`aigc-compress report`: results as a page to look at and hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigc_compress.console import show
from aigc_compress.storage import require_writable, write_bytes

__all__ = ["report"]


def report(
    results: Annotated[list[Path], typer.Argument(help="JSON files that bench -o wrote")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the page")] = Path("report.html"),
) -> None:
    """Make one self-contained HTML page from results of bench and of the peers.

    The page loads nothing, runs no script, and reads well on a phone and in the dark.

    Examples:
        aigc-compress bench gan.onnx gan.int8.onnx -o gan.json

        aigc-compress report gan.json -o report.html
    """
    from aigc_compress.bench.report import read_document, render_report

    require_writable(output)
    page = render_report([read_document(path) for path in results])
    write_bytes(output, page.encode())
    show(str(output))
