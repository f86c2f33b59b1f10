"""`export --to web`: a folder that any web server can serve, and that asks no other server.

It holds the page, the bundle's graphs and golden vectors, ONNX Runtime Web, and `site.json`: the
bundle's manifest and the SHA-256 of every other file, by which the page checks what it loads.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from aigc_compress.errors import InputFileError, OutputError, UsageError
from aigc_compress.packed import decoded, is_packed
from aigc_compress.storage import read_json

from .vendor import PACKAGE, VERSION, runtime_files

__all__ = ["INDEX", "SCHEMA", "write_site"]

INDEX = "site.json"
SCHEMA = "aigc-compress/site/1"
ENGINE = "ort"  # the one engine that a browser has
Document = Mapping[str, Any]


def write_site(
    manifest: Document, members: Mapping[str, bytes], output: Path
) -> tuple[Path, tuple[str, ...]]:
    """Write the site of a bundle, whole or not at all; the same bundle gives the same bytes.

    Args:
        manifest: the bundle's, as JSON.
        members: the bundle's contents by name.
        output: a new or empty folder, or a site that was written before and is replaced.

    Returns:
        The folder, and what the user should know.

    Raises:
        UsageError: no variant of the bundle runs in a browser.
        InputFileError: a member is missing or damaged.
        NotOnThisMachineError: npm, which fetches ONNX Runtime Web, is missing or offline.
        OutputError: the folder holds something else, or cannot be written.
    """
    _require_free(output)
    files = {**_page_files(), **_bundle_files(manifest, members), **runtime_files()}
    index = {
        "schema": SCHEMA,
        "runtime": {"name": PACKAGE, "version": VERSION},
        "bundle": _served(manifest),
        "files": {name: _told(content) for name, content in sorted(files.items())},
    }
    files[INDEX] = (json.dumps(index, indent=1) + "\n").encode()
    _write(output, files)
    return output, _notes(manifest)


def _page_files() -> dict[str, bytes]:
    """Return the page: markup, style, modules and the licence of what it loads."""
    folder = resources.files("aigc_compress.web") / "static"
    found = sorted(folder.iterdir(), key=lambda each: each.name)
    return {each.name: each.read_bytes() for each in found if each.is_file()}


def _bundle_files(manifest: Document, members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return graphs, decoded, and golden vectors by their names in the site."""
    files = {}
    for variant in _runnable(manifest):
        name = variant["model"]
        content = _member(members, name)
        files[_address(name)] = decoded(content, name) if is_packed(name) else content
    for name in _golden_members(_served(manifest)):
        files[name] = _member(members, name)
    return files


def _served(manifest: Document) -> dict[str, Any]:
    """Return the manifest of what the site holds: variants for a browser, graphs not packed."""
    variants = [{**each, "model": _address(each["model"])} for each in _runnable(manifest)]
    names = {each["name"] for each in variants}
    golden = [
        {
            "inputs": each["inputs"],
            "own_inputs": _only(each["own_inputs"] or {}, names),
            "outputs": _only(each["outputs"], names),
        }
        for each in manifest["golden"]
    ]
    return {**manifest, "variants": variants, "golden": golden}


def _runnable(manifest: Document) -> list[Document]:
    found = [each for each in manifest["variants"] if each["engine"] == ENGINE]
    if not found:
        raise UsageError(
            f"The bundle {manifest['name']} holds no ONNX graph, and a browser runs nothing else."
            " Bundle an .onnx model."
        )
    return found


def _only(table: Document, names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name in names}


def _golden_members(served: Document) -> Iterator[str]:
    for each in served["golden"]:
        for arrays in (each["inputs"], *each["own_inputs"].values(), *each["outputs"].values()):
            yield from (array["member"] for array in arrays)


def _address(name: str) -> str:
    return name.removesuffix(".xz")


def _member(members: Mapping[str, bytes], name: str) -> bytes:
    path = PurePosixPath(name)
    if name not in members or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise InputFileError(f"The bundle has no member {name}.")
    return members[name]


def _told(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def _notes(manifest: Document) -> tuple[str, ...]:
    left: Sequence[str] = [
        each["name"] for each in manifest["variants"] if each["engine"] != ENGINE
    ]
    if not left:
        return ()
    return (f"Left out, because a browser runs ONNX graphs alone: {', '.join(left)}.",)


def _require_free(output: Path) -> None:
    """Refuse a folder that holds anything but a site as it was written."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"Cannot write {output}: it is a file. Name a folder.")
    if not output.is_dir():
        return
    found = {each.relative_to(output).as_posix() for each in output.rglob("*") if each.is_file()}
    foreign = sorted(found - _files_of_site(output))
    if foreign:
        raise OutputError(
            f"{output} holds {foreign[0]}, which is not of a site. Name a new folder, or one that"
            " a site was written to before."
        )


def _files_of_site(folder: Path) -> set[str]:
    try:
        index = read_json(folder / INDEX, SCHEMA, "aigc-compress export --to web")
        return {INDEX, *index["files"]}
    except (InputFileError, KeyError, TypeError):
        return set()


def _write(output: Path, files: Mapping[str, bytes]) -> None:
    """Let the whole folder appear at once, in place of the site that stood there."""
    target = output.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
            made, old = Path(temporary, "new"), Path(temporary, "old")
            for name, content in files.items():
                path = made / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            _swap(made, target, old)
    except OSError as error:
        raise OutputError(f"Cannot write {output}: {error.strerror or error}.") from error


def _swap(made: Path, target: Path, old: Path) -> None:
    had_one = target.exists()
    if had_one:
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if had_one:
            old.rename(target)
        raise
