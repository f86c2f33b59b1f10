"""How a model is fed and judged: by its task, or by feeds that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from aigc_compress.bench.quality import measure_sqnr

from .artifact import Artifact, TensorSpec, graph_tensors
from .engines import check_feeds
from .engines.ort import OrtSession
from .errors import FeedError, PassError, UsageError
from .feeds import FeedRules, parse_rules
from .npz import read_npz
from .task import Exhibit, Feeds, OnStep, Quality, Runner, Split, Task

__all__ = ["FeedOptions", "FeedWorkload", "TaskWorkload", "Workload", "make_workload"]

GUESSED_SIZES = (1, 8, 32, 64, 128, 224, 512)
PICTURE_SIZES = (64, 128, 224, 32, 512, 8, 1)  # of one pixel, padding is all that is computed on
CALIBRATION_SAMPLES = 200
RNN_CALIBRATION_SAMPLES = 12_800
EVALUATION_SETS = 32
VALIDATION_SAMPLES = 256  # of a user's calibration feeds, that every candidate is judged on


@dataclass(frozen=True)
class FeedOptions:
    """What the user says about feeds; see `feeds.py` and `npz.py` for the forms."""

    calibration: Path | None = None
    evaluation: Path | None = None
    feed: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()

    @property
    def has_no_files(self) -> bool:
        """Whether no file of feeds was named."""
        return self.calibration is None and self.evaluation is None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said."""
        return self == FeedOptions()


class Workload(Protocol):
    """Feeds and a quality for one model."""

    @property
    def has_baseline_quality(self) -> bool:
        """Whether the FP32 model has a quality of its own to compare with."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the feeds that quality and time are measured on."""
        ...

    @property
    def calibration_notes(self) -> tuple[str, ...]:
        """The same about the feeds that ranges are read from."""
        ...

    def check_feeds(self) -> tuple[Feeds, ...]:
        """Return sets of feeds of at least two sizes where axes are dynamic."""
        ...

    def calibration(self, *, seed: int) -> Sequence[Feeds]:
        """Return the feeds that ranges are read from."""
        ...

    def timing_feeds(self, *, batch: int, length: int, seed: int) -> Feeds:
        """Return the feeds of a timed call."""
        ...

    def measure(
        self,
        runner: Runner,
        reference: Runner,
        *,
        samples: int | None,
        seed: int,
        on_step: OnStep | None,
        split: Split = "test",
        with_details: bool = True,
    ) -> Quality:
        """Return the quality of `runner`; `reference` runs the FP32 model.

        Choices are made on the `validation` split, and what is reported comes from `test`. Without
        `with_details` only the value is promised.
        """
        ...

    def search_notes(self, *, samples: int | None) -> tuple[str, ...]:
        """Return what the user should know about the feeds that choices are made on.

        `samples` is what `measure` is told.
        """
        ...

    def exhibit(self, runner: Runner, *, seed: int) -> Exhibit | None:
        """Return what `runner` makes, for a person to look at; None where there is nothing."""
        ...


@dataclass(frozen=True)
class TaskWorkload:
    """A model with a task: feeds and quality are the task's."""

    task: Task
    notes: tuple[str, ...] = ()
    calibration_notes: tuple[str, ...] = ()
    has_baseline_quality: bool = True

    def check_feeds(self) -> tuple[Feeds, ...]:
        """Return feeds of two batch sizes and two lengths."""
        return self.task.feeds(2, seed=0, length=5), self.task.feeds(3, seed=1, length=8)

    def calibration(self, *, seed: int) -> tuple[Feeds, ...]:
        """Return the task's calibration feeds."""
        is_rnn = self.task.name == "rnn"
        count = RNN_CALIBRATION_SAMPLES if is_rnn else CALIBRATION_SAMPLES
        return tuple(self.task.calibration(count, seed=seed))

    def timing_feeds(self, *, batch: int, length: int, seed: int) -> Feeds:
        """Return one realistic set of feeds; raises UsageError for a length without a time axis."""
        axes = {name for each in self.task.dynamic_axes().values() for name in each.values()}
        if length != 1 and "time" not in axes:
            raise UsageError(f"The task {self.task.name} has no time axis; drop --length.")
        return self.task.feeds(batch, seed=seed, length=length)

    def measure(
        self,
        runner: Runner,
        reference: Runner,
        *,
        samples: int | None,
        seed: int,
        on_step: OnStep | None,
        split: Split = "test",
        with_details: bool = True,
    ) -> Quality:
        """Return the task's metric."""
        return self.task.evaluate(
            runner,
            split=split,
            samples=samples,
            seed=seed,
            on_step=on_step,
            reference=reference,
            with_details=with_details,
        )

    def search_notes(self, *, samples: int | None) -> tuple[str, ...]:
        """Return nothing: a task has a split to choose on."""
        return ()

    def exhibit(self, runner: Runner, *, seed: int) -> Exhibit | None:
        """Return the task's exhibit."""
        return self.task.exhibit(runner, seed=seed)


@dataclass(frozen=True)
class FeedWorkload:
    """A model without a task: the quality is SQNR against the FP32 outputs."""

    inputs: tuple[TensorSpec, ...]
    rules: FeedRules
    calibration_feeds: Sequence[Feeds] = ()
    evaluation_feeds: Sequence[Feeds] = ()
    notes: tuple[str, ...] = ()
    calibration_notes: tuple[str, ...] = ()
    has_baseline_quality: bool = False

    def check_feeds(self) -> tuple[Feeds, ...]:
        """Return a few of the user's feeds, or noise."""
        given = self.calibration_feeds or self.evaluation_feeds  # choices are made on them
        return tuple(given[:: max(1, len(given) // 2)][:2]) or tuple(
            self.rules.make(self.inputs, seed=s, batch=s) for s in (1, 2)
        )

    def calibration(self, *, seed: int) -> Sequence[Feeds]:
        """Return the user's calibration feeds, or noise."""
        return self.calibration_feeds or self._noise(seed)

    def timing_feeds(self, *, batch: int, length: int, seed: int) -> Feeds:
        """Return the user's first feed, or noise of the batch size."""
        given = self.evaluation_feeds or self.calibration_feeds
        firsts = {spec.shape[0] for spec in self.inputs if spec.shape}
        can_batch = not given and any(isinstance(axis, str) for axis in firsts)
        if length != 1 or (batch != 1 and not can_batch):
            raise UsageError(
                "This model's batch and length are those of its feeds: drop --batch and --length,"
                " and set sizes with --shape or in the .npz."
            )
        return given[0] if given else self.rules.make(self.inputs, seed=seed, batch=batch)

    def measure(
        self,
        runner: Runner,
        reference: Runner,
        *,
        samples: int | None,
        seed: int,
        on_step: OnStep | None,
        split: Split = "test",
        with_details: bool = True,
    ) -> Quality:
        """Return the SQNR of the worst output over the evaluation feeds.

        Validation takes the calibration feeds, whose ranges are known: it is on the bright side.
        Every candidate is judged there, so a bounded number spread over all stands for them.
        """
        if split == "validation":
            feeds = self.calibration_feeds or self._noise(seed + 2_000)
            feeds = feeds[:: _stride(len(feeds))] if samples is None else feeds
        else:
            feeds = self.evaluation_feeds or self._noise(seed + 1_000)
        return measure_sqnr(reference, runner, feeds[:samples])

    def search_notes(self, *, samples: int | None) -> tuple[str, ...]:
        """Return that a part of the calibration feeds stood for all, where it did."""
        count = len(self.calibration_feeds)
        judged = len(range(0, count, _stride(count)))
        if samples is not None or judged == count:
            return ()
        return (
            f"Candidates were compared on {judged} of the {count} calibration samples, spread"
            " evenly over them; what is reported of the answer rests on all. --samples sets both.",
        )

    def exhibit(self, runner: Runner, *, seed: int) -> Exhibit | None:
        """Return None: without a task nobody knows how the outputs look."""
        return None

    def _noise(self, seed: int) -> tuple[Feeds, ...]:
        return tuple(self.rules.make(self.inputs, seed=seed + i) for i in range(EVALUATION_SETS))


def _stride(count: int) -> int:
    """Return the step at which VALIDATION_SAMPLES or fewer are spread over a number of samples."""
    return max(1, -(-count // VALIDATION_SAMPLES))


def make_workload(artifact: Artifact, options: FeedOptions) -> Workload:
    """Return the workload of a model: its task's unless the user names feeds.

    Raises:
        UsageError: a torch model has no task.
        FeedError: feeds do not fit the model, or no size was found for its dynamic axes.
    """
    if artifact.task is not None and artifact.spec is not None and options.is_empty:
        from aigc_compress.models.tasks import make_task

        task = make_task(artifact.task, artifact.spec.config, artifact.spec.sizes)
        if artifact.stage == "onnx":
            check_feeds(task.feeds(2, seed=0, length=2), graph_tensors(artifact.payload)[0])
        return TaskWorkload(task)
    if artifact.stage != "onnx" and options.is_empty:
        raise UsageError("This .pt names no task, so its inputs are not known. Pass its .onnx.")
    if artifact.stage != "onnx":
        raise UsageError("Feeds can be named for .onnx models; export this model first.")
    inputs, _ = graph_tensors(artifact.payload)
    rules = parse_rules(options.feed, options.shape)
    workload = FeedWorkload(inputs, rules)
    if not options.has_no_files:
        if options.feed or options.shape:
            raise UsageError("--feed and --shape describe noise; drop them where feeds are given.")
        return _with_files(workload, options)
    return _with_guessed_sizes(workload, artifact, options)


def _with_files(workload: FeedWorkload, options: FeedOptions) -> FeedWorkload:
    def read(path: Path | None) -> Sequence[Feeds]:
        feeds = read_npz(path, workload.inputs) if path else ()
        for each in feeds[:1]:  # all samples of an array have one shape and dtype
            check_feeds(each, workload.inputs)
        return feeds

    calibration, evaluation = read(options.calibration), read(options.evaluation)
    borrowed = ("No --calibration: ranges were read from the evaluation feeds themselves.",)
    shared = ("No --evaluation: quality was measured on the calibration feeds.",)
    return replace(
        workload,
        calibration_feeds=calibration or evaluation,
        evaluation_feeds=evaluation or calibration,
        notes=() if evaluation else shared,
        calibration_notes=() if calibration else borrowed,
    )


def _with_guessed_sizes(
    workload: FeedWorkload, artifact: Artifact, options: FeedOptions
) -> FeedWorkload:
    """Find sizes of the dynamic axes that the model runs with; sides of pictures are no pixels."""
    session = OrtSession(artifact, threads=1)
    unknown = _unknown_axes(workload)
    sides = {axis for each in workload.inputs if len(each.shape) == 4 for axis in each.shape[1:]}
    reason = ""
    for size in PICTURE_SIZES if sides & {*unknown} else GUESSED_SIZES:
        rules = replace(
            workload.rules, sizes={**dict.fromkeys(unknown, size), **workload.rules.sizes}
        )
        candidate = replace(workload, rules=rules)
        try:
            for feeds in candidate.check_feeds():
                check_feeds(feeds, workload.inputs)
                outputs = session.run(feeds)
                if not all(value.size for value in outputs.values()):
                    raise PassError("an output is empty")
        except (PassError, FeedError) as error:
            reason = str(error)
            if unknown:
                continue
            break
        return replace(candidate, notes=_noise_notes(unknown, size, options))
    raise FeedError(
        f"The model does not run on noise: {reason} Give real feeds with --calibration FILE.npz,"
        " or say more with --feed 'x=uniform(0,1)' and --shape 'x=1,3,224,224'."
    )


def _unknown_axes(workload: FeedWorkload) -> list[str]:
    """Return the dynamic axes, other than a first (batch) axis, whose size nobody told."""
    batch = {spec.shape[0] for spec in workload.inputs if spec.shape}
    return sorted(
        {
            axis
            for spec in workload.inputs
            if spec.name not in workload.rules.shapes
            for axis in spec.shape
            if isinstance(axis, str) and axis not in batch and axis not in workload.rules.sizes
        }
    )


def _noise_notes(unknown: Sequence[str], size: int, options: FeedOptions) -> tuple[str, ...]:
    notes = ["No data was given: ranges and quality rest on seeded noise, not on real inputs."]
    if options.feed:
        notes = ["No data was given: ranges and quality rest on the --feed rules."]
    if unknown:
        notes.append(f"Dynamic axes {', '.join(unknown)} were set to {size}; --shape sets others.")
    return tuple(notes)
