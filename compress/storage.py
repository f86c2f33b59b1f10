"""Write files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import InputFileError, OutputError, first_line, missing_file

__all__ = ["digest_file", "read_json", "require_writable", "write_atomically", "write_bytes"]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, sync it, then rename it into place.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, or `path` is a
            folder, a device or a pipe. Whatever stood at `path` before is still there.
    """
    _require_plain(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all; raises OutputError like write_atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def read_json(path: Path, schema: str, made_by: str) -> dict[str, Any]:
    """Return a JSON document of ours; `made_by` names the command that writes such files.

    Raises:
        InputFileError: the file is missing, no JSON, or of another schema.
    """
    if not path.is_file():
        raise missing_file(path)
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputFileError(f"{path} is no JSON document: {first_line(error)}") from error
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise InputFileError(f"{path} is no result of `{made_by}` ({schema}).")
    return document


def require_writable(path: Path) -> None:
    """Raise OutputError now if a file at `path` could not be written later, after long work."""
    _require_plain(path)
    if not path.parent.is_dir():
        raise OutputError(f"Cannot write {path}: there is no folder {path.parent}. Create it.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_plain(path: Path) -> None:
    """Refuse a folder, and a device or pipe: the rename would put a file in its place."""
    if path.is_dir():
        raise OutputError(f"Cannot write {path}: it is a folder. Name a file in it.")
    if path.exists() and not path.is_file():
        raise OutputError(f"Cannot write {path}: it is no plain file.")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
