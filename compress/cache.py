"""What a search found out already, kept on disk: a killed run goes on where it was.

A run has a folder of its own, named by everything that its results rest on: the model, the feeds,
the seed, the processor, and the versions of the tool and its libraries. In it, graphs and numbers
stand under the digest of what they were made from. A file appears whole or not at all; one that
cannot be read counts as missing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from aigc_compress.bench.statistics import RatioInterval

from .artifact import Artifact, Step
from .errors import OutputError
from .machine import cpu_flags, cpu_name, versions
from .meter import Meter, NodeTime
from .storage import write_bytes
from .task import Feeds

__all__ = ["Cache", "CachedMeter", "cache_root", "digest", "digest_feeds"]

T = TypeVar("T")

MOST_BYTES = 4 * 2**30
UNREADABLE = (OSError, ValueError, ValidationError, TypeError, KeyError)


class Cache:
    """Graphs and numbers of one run; without a folder nothing is kept.

    Attributes:
        has_reused: whether something came from an earlier run.
    """

    def __init__(self, folder: Path | None = None, *, is_fresh: bool = False) -> None:
        """Open the folder of a run; a fresh one reads nothing of what was kept before."""
        self._folder = folder
        self._reads = not is_fresh
        self._own: set[str] = set()
        self.has_reused = False

    @classmethod
    def of_run(cls, about: Sequence[Any], root: Path, *, is_fresh: bool = False) -> Cache:
        """Open the cache of a run on this machine; the oldest runs beyond 4 GiB are dropped."""
        surroundings = [_code_digest(), versions(), cpu_name(), sorted(cpu_flags())]
        folder = root / _key([surroundings, about])[:24]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
            _drop_oldest(root, keep=folder)
        except OSError:  # no cache is no reason to fail
            return cls(None)
        return cls(folder, is_fresh=is_fresh)

    def value(self, about: Sequence[Any], kind: Any, make: Callable[[], T]) -> T:
        """Return what `make` returned for the same `about` before, else call it and keep it.

        Args:
            about: everything that the value depends on, as JSON values.
            kind: its type, of which pydantic can check JSON values.
            make: called where nothing is kept.
        """
        adapter = TypeAdapter(kind)
        name = f"{_key(about)}.json"
        try:
            found: T = adapter.validate_python(json.loads(self._read(name)))
            return found
        except UNREADABLE:
            value = make()
        self._write(name, json.dumps(adapter.dump_python(value, mode="json")).encode())
        return value

    def store(self, about: Sequence[Any], kind: Any, value: Any) -> None:
        """Keep a value that grows, in place of what was kept before."""
        dumped = TypeAdapter(kind).dump_python(value, mode="json")
        self._write(f"{_key(about)}.json", json.dumps(dumped).encode())

    def artifact(
        self, before: Artifact, about: Sequence[Any], make: Callable[[], Artifact]
    ) -> Artifact:
        """Return the ONNX artifact that was made of `before` in this way, or make and keep it."""
        known = self.known_artifact(before, about)
        if known is not None:
            return known
        made = make()
        self.keep_artifact(before, about, made)
        return made

    def known_artifact(self, before: Artifact, about: Sequence[Any]) -> Artifact | None:
        """Return the ONNX artifact that was made of `before` in this way, or None."""
        name = _key([digest(before), about])
        try:
            model, steps = self._read(f"{name}.onnx"), json.loads(self._read(f"{name}.json"))
            return _restored(before, model, steps)
        except UNREADABLE:
            return None

    def keep_artifact(self, before: Artifact, about: Sequence[Any], made: Artifact) -> None:
        """Keep what was made of `before` in this way."""
        name = _key([digest(before), about])
        steps = [asdict(step) for step in made.history[len(before.history) :]]
        self._write(f"{name}.onnx", made.payload.SerializeToString())
        self._write(f"{name}.json", json.dumps(steps).encode())

    def _read(self, name: str) -> bytes:
        if self._folder is None or not (self._reads or name in self._own):
            raise FileNotFoundError(name)
        content = (self._folder / name).read_bytes()
        self.has_reused = self.has_reused or name not in self._own
        return content

    def _write(self, name: str, content: bytes) -> None:
        if self._folder is None:
            return
        try:
            write_bytes(self._folder / name, content)
            self._own.add(name)
        except OutputError:  # the disk is full: the run goes on without
            self._folder = None


@dataclass(frozen=True)
class CachedMeter:
    """A meter that gives the same answer to the same question in a run that goes on."""

    meter: Meter
    cache: Cache

    def compare(
        self,
        baseline: Artifact,
        candidates: Sequence[Artifact],
        feeds: Feeds,
        engines: Sequence[str] = (),
    ) -> Sequence[RatioInterval]:
        """Return the speed-up of every candidate, measured now or before the run was killed."""
        graphs = [digest(each) for each in (baseline, *candidates)]

        def measure() -> list[RatioInterval]:
            found = self.meter.compare(baseline, candidates, feeds, engines)
            return [RatioInterval(each.ratio, each.low, each.high) for each in found]

        about = ["compare", *graphs, digest_feeds([feeds]), *engines]
        return self.cache.value(about, list[RatioInterval], measure)

    def profile(self, artifact: Artifact, feeds: Feeds) -> Mapping[str, NodeTime]:
        """Return the times of nodes, measured now or before the run was killed."""
        about = ["profile", digest(artifact), digest_feeds([feeds])]
        return self.cache.value(
            about, dict[str, NodeTime], lambda: dict(self.meter.profile(artifact, feeds))
        )


def cache_root() -> Path:
    """Return where caches stand: $AIGC_COMPRESS_CACHE, else the user's cache folder."""
    named = os.environ.get("AIGC_COMPRESS_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "aigc-compress"


def digest(artifact: Artifact) -> str:
    """Return the SHA-256 of what an ONNX artifact computes: names and texts about it left out."""
    model = artifact.payload
    sha = hashlib.sha256()
    for part in (model.graph, *model.opset_import, *model.functions):
        sha.update(part.SerializeToString())
    return sha.hexdigest()


def digest_feeds(feeds: Iterable[Feeds]) -> str:
    """Return the SHA-256 of sets of feeds: names, dtypes, shapes and values."""
    sha = hashlib.sha256()
    for each in feeds:
        for name, values in each.items():
            array = np.ascontiguousarray(values)
            sha.update(f"{name} {array.dtype} {array.shape}".encode())
            sha.update(array.tobytes())
    return sha.hexdigest()


def _restored(before: Artifact, content: bytes, steps: Sequence[Mapping[str, Any]]) -> Artifact:
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    try:
        model = ModelProto.FromString(content)
    except DecodeError as error:
        raise ValueError("no ONNX model") from error
    made = before
    for step in TypeAdapter(tuple[Step, ...]).validate_python(steps):
        made = made.then(model, step, stage="onnx")
    return made


def _key(about: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code_digest() -> str:
    """Return the digest of this package's own files: other code may find other things."""
    sha = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def _drop_oldest(root: Path, *, keep: Path) -> None:
    """Remove the folders of the runs that were used longest ago, down to MOST_BYTES in all."""
    folders = [each for each in root.iterdir() if each.is_dir() and each != keep]
    folders.sort(key=lambda each: each.stat().st_mtime, reverse=True)
    total = 0
    for folder in folders:
        total += sum(each.stat().st_size for each in folder.iterdir())
        if total > MOST_BYTES:
            shutil.rmtree(folder, ignore_errors=True)
