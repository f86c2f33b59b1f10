"""A model in a bundle: the variant that proves itself on this machine, called like a function."""

from __future__ import annotations

import asyncio
import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import FeedError, InputFileError, NotOnThisMachineError, unknown_name

from .archive import Archive, open_archive
from .manifest import MANIFEST, Manifest, Port, Stored, Variant, read_manifest
from .model import Model, load_graph
from .processor import lacks

__all__ = ["EQUAL_DB", "Arrays", "Bundle", "Check", "examine", "golden_sets", "open_bundle"]

EQUAL_DB = 300.0  # stands for infinity, which JSON has no word for
Arrays = dict[str, NDArray[Any]]
DRIFTED = "its outputs agree with the recorded ones by {found:.1f} dB only, not {needed:.1f}"


@dataclass(frozen=True)
class Check:
    """What became of a variant on this machine.

    Attributes:
        variant: its name.
        agreement_db: of its golden outputs with the recorded ones, 300 where they are equal;
            None: it was not run.
        reason: why it is not used; empty where it may be.
    """

    variant: str
    agreement_db: float | None = None
    reason: str = ""


class Bundle:
    """A loaded bundle; it may be called from several threads at once.

    Attributes:
        manifest: everything that the bundle says.
        variant: the one in use.
        checks: what became of the variants that were looked at, in order.
        inputs: input names in order.
        outputs: output names in order.
    """

    def __init__(
        self, archive: Archive, manifest: Manifest, *, threads: int = 1, variant: str | None = None
    ) -> None:
        """Load the first variant that fits; see `runtime.load`."""
        self.manifest = manifest
        self._archive, self._threads = archive, threads
        self.checks: tuple[Check, ...] = ()
        self._lock = threading.Lock()
        self._calls = 0
        self.variant, self._model = self._first_that_fits(variant)
        self.inputs = tuple(each.name for each in self.variant.inputs)
        self.outputs = tuple(each.name for each in self.variant.outputs)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs by name for one set of feeds by name.

        Raises:
            FeedError: feeds do not fit the inputs, or the bundle was closed.
        """
        model = self._model
        if model is None:
            raise FeedError("The bundle was closed.")
        with self._lock:
            self._calls += 1
        return model(**feeds)

    def __call__(self, *arrays: NDArray[Any], **named: NDArray[Any]) -> Any:
        """Run once: arrays in the order of `inputs`, or by name.

        Returns:
            The output's array where there is one output, else all by name.

        Raises:
            FeedError: an input is missing, unknown, or of another dtype or shape.
        """
        if len(arrays) > len(self.inputs):
            raise FeedError(f"The inputs are {', '.join(self.inputs)}; given: {len(arrays)}.")
        outputs = self.run({**dict(zip(self.inputs, arrays, strict=False)), **named})
        return outputs[self.outputs[0]] if len(self.outputs) == 1 else outputs

    async def arun(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run once in a thread, without holding up the event loop."""
        return await asyncio.to_thread(self.run, feeds)

    def stats(self) -> dict[str, Any]:
        """Return the variant in use, the calls so far, and why other variants are not used."""
        return {
            "variant": self.variant.name,
            "calls": self._calls,
            "checks": [vars(each) for each in self.checks],
        }

    def close(self) -> None:
        """Let go of the session; calls that are running end as they would."""
        self._model = None

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def load_variant(self, variant: Variant) -> tuple[Model | None, Check]:
        """Return a variant's session where it proves itself here, and what was found."""
        return examine(self._archive, self.manifest, variant, threads=self._threads)

    def _first_that_fits(self, wanted: str | None) -> tuple[Variant, Model | None]:
        variants = {each.name: each for each in self.manifest.variants}
        if wanted is not None and wanted not in variants:
            raise unknown_name("variant", wanted, variants)
        for variant in variants.values() if wanted is None else [variants[wanted]]:
            model, check = self.load_variant(variant)
            self.checks = (*self.checks, check)
            if model is not None:
                return variant, model
            warnings.warn(f"{variant.name} is not used: {check.reason}.", stacklevel=4)
        told = "; ".join(f"{each.variant}: {each.reason}" for each in self.checks)
        raise NotOnThisMachineError(f"Nothing in {self._archive.path} runs rightly here: {told}.")


def examine(
    archive: Archive, manifest: Manifest, variant: Variant, *, threads: int
) -> tuple[Model | None, Check]:
    """Return a variant's session where it proves itself on this machine, and what was found.

    Raises:
        InputFileError: its member or its golden arrays are damaged.
    """
    if variant.engine != "ort":
        return None, Check(variant.name, reason=f"the runtime does not run {variant.engine}")
    missing = lacks(variant.needs)
    if missing:
        return None, Check(variant.name, reason=missing)
    model = load_graph(archive.read(variant.model), variant.model, threads=threads)
    found = EQUAL_DB
    for feeds, recorded in golden_sets(archive, manifest, variant):
        outputs = model(**feeds)
        found = min(found, *(_sqnr_db(recorded[k], outputs[k]) for k in recorded))
    if found < variant.least_db:
        told = DRIFTED.format(found=found, needed=variant.least_db)
        return None, Check(variant.name, found, told)
    return model, Check(variant.name, found)


def golden_sets(
    archive: Archive, manifest: Manifest, variant: Variant
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yield the golden feeds of a variant, and what it gave for them where it was made."""

    def arrays(ports: tuple[Port, ...], stored: tuple[Stored, ...]) -> Arrays:
        pairs = zip(ports, stored, strict=True)
        return {port.name: _array(archive, port, each) for port, each in pairs}

    for each in manifest.golden:
        feeds = arrays(variant.inputs, each.inputs_of(variant.name))
        yield feeds, arrays(variant.outputs, each.outputs[variant.name])


def open_bundle(path: str | Path, *, key: bytes | None = None) -> tuple[Archive, Manifest]:
    """Read a bundle's archive and manifest; a key is one that it must be signed with.

    Raises:
        InputFileError: the file is missing, damaged, hostile, or not signed by that key.
        NotOnThisMachineError: signatures need the package cryptography.
    """
    archive = open_archive(path)
    if key is not None:
        archive.check_signature(key)
    return archive, read_manifest(archive.read(MANIFEST))


def _array(archive: Archive, port: Port, stored: Stored) -> NDArray[Any]:
    dtype = np.dtype(port.dtype).newbyteorder("<")
    if archive.size(stored.member) != math.prod(stored.shape) * dtype.itemsize:
        raise InputFileError(f"{stored.member} does not hold {port.dtype} {[*stored.shape]}.")
    values = np.frombuffer(archive.read(stored.member), dtype).reshape(stored.shape)
    return values.astype(port.dtype, copy=False)


def _sqnr_db(recorded: NDArray[Any], found: NDArray[Any]) -> float:
    """Return 10 log10 of signal over noise power; -300 where shapes or NaNs differ."""
    if recorded.shape != found.shape:
        return -EQUAL_DB
    signal, other = recorded.astype(np.float64), found.astype(np.float64)
    if not np.array_equal(np.isfinite(signal), np.isfinite(other)):
        return -EQUAL_DB
    is_finite = np.isfinite(signal)
    noise = float(np.square(signal - other, where=is_finite, out=np.zeros_like(signal)).sum())
    power = float(np.square(signal, where=is_finite, out=np.zeros_like(signal)).sum())
    if noise == 0:
        return EQUAL_DB
    return 10 * math.log10(power / noise) if power else -EQUAL_DB
