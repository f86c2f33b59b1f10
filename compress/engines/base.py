"""What an engine is: it says whether it is here, and loads an artifact into a runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from aigc_compress.errors import FeedError
from aigc_compress.task import Feeds, Runner

if TYPE_CHECKING:  # a timing process loads files, and needs no more than its engine
    from aigc_compress.artifact import Artifact, TensorSpec

__all__ = ["Availability", "Engine", "HasDeviceClock", "LoadsFiles", "Remarks", "check_feeds"]


@dataclass(frozen=True)
class Availability:
    """Whether an engine can run here; where not, what is missing and how to get it."""

    is_available: bool
    detail: str
    install: str = ""


class Engine(Protocol):
    """One way to execute artifacts."""

    @property
    def name(self) -> str:
        """What it is called in `--engine`."""
        ...

    @property
    def stage(self) -> str:
        """Which artifacts it runs: `torch` or `onnx`."""
        ...

    @property
    def is_on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        ...

    @property
    def int8_pass(self) -> str:
        """The pass that writes INT8 as this engine wants it; empty where none does."""
        ...

    def availability(self) -> Availability:
        """Tell whether this engine can run here, without starting it."""
        ...

    def load(self, artifact: Artifact, *, threads: int) -> Runner:
        """Load an artifact of this engine's stage; raises NotOnThisMachineError or PassError."""
        ...


@runtime_checkable
class LoadsFiles(Protocol):
    """An engine that opens a file itself, as an edge app does, with no graph in Python's memory."""

    def load_file(self, path: Path, *, threads: int) -> Runner:
        """Load a file of this engine's stage; raises NotOnThisMachineError or PassError."""
        ...


@runtime_checkable
class HasDeviceClock(Protocol):
    """A runner whose device tells how long a call took it, without the way there and back."""

    def device_timer(self, feeds: Feeds) -> Callable[[int], list[int]]:
        """Put the feeds on the device; return what makes n calls and tells nanoseconds of each.

        Outputs stay on the device. A call counts from its first to its last work there, which is
        longer than the work where the host is late in sending it.
        """
        ...


@runtime_checkable
class Remarks(Protocol):
    """A runner that has something to say of how it runs its model."""

    remarks: tuple[str, ...]


def check_feeds(feeds: Feeds, inputs: tuple[TensorSpec, ...]) -> None:
    """Raise FeedError unless names, dtypes, ranks and fixed sizes fit; dynamic sizes must agree."""
    expected = {spec.name for spec in inputs}
    if set(feeds) != expected:
        raise FeedError(
            f"The feeds are named {sorted(feeds)}, the model's inputs {sorted(expected)}."
            " Give one array per input."
        )
    sizes: dict[str, int] = {}
    for spec in inputs:
        _check_feed(feeds[spec.name], spec, sizes)


def _check_feed(array: NDArray[Any], spec: TensorSpec, sizes: dict[str, int]) -> None:
    wanted = f"{spec.dtype} {list(spec.shape)}"
    found = f"{array.dtype} {list(array.shape)}"
    fits = array.dtype.name == spec.dtype and array.ndim == len(spec.shape)
    if fits:
        for size, axis in zip(array.shape, spec.shape, strict=True):
            known = sizes.setdefault(axis, size) if isinstance(axis, str) else axis
            fits = fits and size == known
    if not fits:
        seen = f" (with {_known(spec, sizes)})" if _known(spec, sizes) else ""
        raise FeedError(f"Input {spec.name!r} needs {wanted}{seen}; the feed is {found}.")


def _known(spec: TensorSpec, sizes: Mapping[str, int]) -> str:
    named = [axis for axis in spec.shape if isinstance(axis, str) and axis in sizes]
    return ", ".join(f"{axis}={sizes[axis]}" for axis in named)
