"""What a model is for: its feeds, and how good its outputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

__all__ = ["Feeds", "OnStep", "Quality", "Runner", "Split", "Task", "batches"]

Feeds = Mapping[str, NDArray[Any]]
OnStep = Callable[[int, int], None]
Split = Literal["validation", "test"]


class Runner(Protocol):
    """Whatever computes a model's outputs: an engine's session."""

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for one set of feeds by input name."""
        ...


@dataclass(frozen=True)
class Quality:
    """One measured quality.

    Attributes:
        metric: the metric's name with its unit, for example `top-1 %`.
        value: the measured value.
        higher_is_better: the metric's direction.
        samples: number of samples (images, characters) behind the value.
        split: the data split that it was measured on, or how the feeds were made.
        spread: standard deviation of the value over resamples, where one is known.
        details: further numbers by name (JSON types only).
    """

    metric: str
    value: float
    higher_is_better: bool
    samples: int
    split: str
    spread: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def drop_from(self, baseline: Quality) -> float:
        """Return by how much this is worse than `baseline`, in the metric's unit; < 0 is better."""
        change = baseline.value - self.value
        return change if self.higher_is_better else -change


class Task(Protocol):
    """A kind of use. `gan`, `cnn` and `rnn` ship; another class with these members is one too."""

    name: str

    def feeds(self, batch: int, *, seed: int, length: int = 1) -> dict[str, NDArray[Any]]:
        """Return one realistic set of feeds; `length` is the number of time steps, if any."""
        ...

    def dynamic_axes(self) -> Mapping[str, Mapping[int, str]]:
        """Return the names of the axes that stay dynamic on export, by input name and axis."""
        ...

    def calibration(self, count: int, *, seed: int) -> Iterator[Feeds]:
        """Yield feeds that hold `count` samples in all, from training data or the sampler."""
        ...

    def evaluate(
        self,
        runner: Runner,
        *,
        split: Split,
        samples: int | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Quality:
        """Measure the quality of a runner on `samples` samples of a split (default: all)."""
        ...


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield slices that cut range(count) into pieces of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
