"""Every error that aigc-compress raises on purpose, and the exit code that each one means.

AigcCompressError                 1  the work failed
├── UsageError                    2  used wrongly: an option, a name, a configuration
│   ├── InputFileError            2  a file that is missing, damaged, hostile or of another kind
│   └── FeedError                 2  feeds whose names, shapes or dtypes do not fit the model
├── NotOnThisMachineError         3  an engine, a device or an extra that is not here
├── OutputError                   1  the result could not be written; nothing was left half-done
├── PassError                     1  a pass broke its promise, or a library failed inside it
└── StoppedError                130  interrupted; the message says what was saved
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "AigcCompressError",
    "FeedError",
    "InputFileError",
    "NotOnThisMachineError",
    "OutputError",
    "PassError",
    "StoppedError",
    "UsageError",
    "describe_faults",
    "first_line",
    "missing_file",
    "unknown_name",
]


class AigcCompressError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(AigcCompressError):
    """The request itself is wrong: an option, a name or a configuration."""

    exit_code = 2


class InputFileError(UsageError):
    """A file is missing, damaged, hostile or of another kind than needed."""


class FeedError(UsageError):
    """Feeds do not fit the model's inputs by name, shape or dtype."""


class NotOnThisMachineError(AigcCompressError):
    """An engine, a device or an optional package that the request needs is not here."""

    exit_code = 3


class OutputError(AigcCompressError):
    """A result could not be written; no partial file was left."""


class PassError(AigcCompressError):
    """A pass could not keep its promise."""


class StoppedError(AigcCompressError):
    """The user interrupted; the message says what was saved and how to go on."""

    exit_code = 130


def missing_file(path: Path) -> InputFileError:
    """Return the error for a path that is no file."""
    if path.is_dir():
        return InputFileError(f"{path} is a folder. Name a file in it.")
    return InputFileError(f"There is no file {path}.")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def describe_faults(error: Exception) -> str:
    """Return all faults that pydantic found, each with its place, on one line."""
    list_faults = getattr(error, "errors", None)
    if list_faults is None:
        return first_line(error)
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'whole'}: {fault['msg']}"
        for fault in list_faults()
    )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that is not in a table, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UsageError(f"There is no {kind} {name!r}.{hint} Known: {', '.join(names)}.")
