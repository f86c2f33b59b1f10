"""The only place that knows a screen: results on stdout, talk and progress on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .task import OnStage, OnStep

__all__ = ["progress", "say", "show", "show_json", "show_table", "staged_progress", "to_json"]

WIDTH_OF_FILES = 150  # a table sent to a file or a pipe should not wrap

talk = Console(stderr=True, highlight=False)
results = Console(highlight=False)
if not results.is_terminal:
    results.width = WIDTH_OF_FILES


def show(text: str) -> None:
    """Print a line of the result on stdout, as it is."""
    print(text)


def say(message: str) -> None:
    """Tell something beside the result, on stderr."""
    talk.print(message, markup=False, soft_wrap=True)


def show_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    print(to_json(document))


def to_json(document: Mapping[str, Any]) -> str:
    """Return a document as JSON text; numbers that are not finite become null."""
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout; columns whose cells look like numbers stand to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numeric = all(row[index][:1].isdigit() or row[index][:1] in "-+" for row in rows)
        table.add_column(column, justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    results.print(table)


@contextmanager
def progress(description: str) -> Iterator[OnStep]:
    """Show a bar with time left on stderr; nothing where stderr is no terminal."""
    with _bars() as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total or None)


@contextmanager
def staged_progress(description: str) -> Iterator[tuple[OnStep, OnStage]]:
    """Show two bars: of the whole, and of the stage at hand; each with its time left."""
    with _bars() as bars:
        whole = bars.add_task(description, total=None)
        part = bars.add_task("", total=None)

        def on_stage(number: int, total: int, name: str) -> None:
            bars.update(whole, completed=number - 1, total=total)
            bars.reset(part, description=f"  {name}", total=None)

        yield lambda done, total: bars.update(part, completed=done, total=total or None), on_stage


def _bars() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=talk, disable=not talk.is_terminal, transient=True)
