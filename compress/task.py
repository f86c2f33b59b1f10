"""What a model is for: its feeds, how good its outputs are, and what a person can look at."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

from numpy.typing import NDArray

__all__ = [
    "Deployable",
    "Exhibit",
    "Feeds",
    "Measure",
    "MeasureDocument",
    "OnStage",
    "OnStep",
    "Quality",
    "Runner",
    "Split",
    "Task",
    "Trainable",
    "Use",
    "batches",
    "quiet",
]

Feeds = Mapping[str, NDArray[Any]]
OnStep = Callable[[int, int], None]
OnStage = Callable[[int, int, str], None]  # its number, from 1 on, of how many, its name
Split = Literal["validation", "test"]


def quiet(_done: int, _total: int) -> None:
    """Report nothing: the OnStep of those whom nobody watches."""


class Runner(Protocol):
    """Whatever computes a model's outputs: an engine's session."""

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for one set of feeds by input name."""
        ...


class MeasureDocument(TypedDict):
    """The JSON form of a measure; what is unknown or not finite is None."""

    value: float | None
    higher_is_better: bool
    low: float | None
    high: float | None
    samples: int


@dataclass(frozen=True)
class Measure:
    """A further number beside a quality; its name holds its unit.

    Attributes:
        value: the measured value.
        higher_is_better: its direction.
        samples: number of samples (images, characters, sets of feeds) behind it.
        low: lower end of its 95 % confidence interval, where one is known.
        high: upper end.
    """

    value: float
    higher_is_better: bool
    samples: int
    low: float | None = None
    high: float | None = None

    def document(self) -> MeasureDocument:
        """Return the entry of `Quality.details`."""
        return {
            "value": _finite(self.value),
            "higher_is_better": self.higher_is_better,
            "low": _finite(self.low),
            "high": _finite(self.high),
            "samples": self.samples,
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Exhibit:
    """What a person looks at: a picture, its PNG file in base64, or a text as it is."""

    kind: Literal["image/png", "text/plain"]
    data: str

    @classmethod
    def of_png(cls, content: bytes) -> Exhibit:
        """Wrap the bytes of a PNG file."""
        return cls("image/png", base64.b64encode(content).decode("ascii"))

    def document(self) -> dict[str, str]:
        """Return the JSON form."""
        return {"kind": self.kind, "data": self.data}


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
        details: further numbers by name (JSON types only), most of them a `MeasureDocument`.
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
        reference: Runner | None = None,
        with_details: bool = True,
    ) -> Quality:
        """Measure the quality of a runner on `samples` samples of a split (default: all).

        `reference` runs the FP32 model: where it is given and another than `runner`, the details
        compare the outputs of both on the same feeds too. Without `with_details` the details may be
        empty: a search that judges many candidates needs the value alone.
        """
        ...

    def exhibit(self, runner: Runner, *, seed: int = 0) -> Exhibit | None:
        """Return what a runner makes, for a person to look at; None where there is nothing."""
        ...


@dataclass(frozen=True)
class Use:
    """What an app needs to know to use a model of a task.

    Attributes:
        kind: images, classes or text: see the runtime's BUNDLE.md.
        processing: what the kind asks for.
        meanings: of inputs and outputs, by name.
        licences: of the data behind the weights.
    """

    kind: str
    processing: Mapping[str, Any]
    meanings: Mapping[str, str]
    licences: tuple[str, ...] = ()


@runtime_checkable
class Deployable(Protocol):
    """A task that tells an app how to use its models; for others an app feeds plain arrays."""

    def use(self) -> Use:
        """Return what an app needs to know."""
        ...


class Trainable(Task, Protocol):
    """A task whose models can be trained, distilled and ranked by their loss.

    Modules and batches are torch's; they are not named here, so that tasks need no torch.
    """

    def batch(self, index: int, *, size: int, seed: int) -> Any:
        """Return the training batch of a step, from (index, seed) alone: augmented data, labels."""
        ...

    def inputs(self, batch: Any) -> tuple[Any, ...]:
        """Return the module's arguments in a batch."""
        ...

    def loss(self, outputs: Any, batch: Any) -> Any:
        """Return the loss, a scalar tensor, of what the module returned for a batch."""
        ...


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield slices that cut range(count) into pieces of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
