"""The training loop: steps, validations, checkpoints, and a stop that loses nothing."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aigc_compress.checkpoint import read_plain, write_torch
from aigc_compress.errors import InputFileError, PassError, StoppedError, UsageError
from aigc_compress.storage import write_bytes
from aigc_compress.task import Quality

from .base import Trainer, seeded

__all__ = ["Progress", "RunOptions", "run_training"]

FORMAT = "aigc-compress/training/1"


@dataclass(frozen=True)
class RunOptions:
    """Where a run writes and how often.

    Attributes:
        folder: everything of the run: checkpoint, logs, samples.
        checkpoint_minutes: minutes between checkpoints.
        log_every: steps between logged losses.
    """

    folder: Path
    checkpoint_minutes: float = 5.0
    log_every: int = 50


@dataclass(frozen=True)
class Progress:
    """What the loop tells after a step: steps done and in all, and news to show."""

    done: int
    total: int
    losses: Mapping[str, float]
    quality: Quality | None = None


def run_training(
    trainer: Trainer, options: RunOptions, *, on_progress: Callable[[Progress], None]
) -> float:
    """Train to the last step, going on from the folder's checkpoint; return the seconds spent.

    The result is the same whether a run was interrupted or not: a step's randomness and data come
    from its index alone.

    Raises:
        StoppedError: Ctrl-C or SIGTERM came; the checkpoint was saved first.
        UsageError: the folder holds a checkpoint of another configuration.
        PassError: a loss stopped being finite.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    start, seconds = _resume(trainer, options.folder)
    log = _Log(options.folder, start)
    total = trainer.config.steps
    begun = saved = time.monotonic()
    with _stop_requested() as is_stopping:
        for index in range(start, total):
            with seeded(trainer.config.seed, index + 1):
                trainer.hold(index)
                losses = trainer.step(index)
            done = index + 1
            now = time.monotonic()
            saves = is_stopping() or done == total or now - saved > 60 * options.checkpoint_minutes
            if saves or done % options.log_every == 0:
                values = {name: float(value) for name, value in losses.items()}
                _require_finite(values, done)
                log.write(done, values)
                on_progress(Progress(done, total, values))
            if done % trainer.config.validate_every == 0 or done == total:
                quality = _validate(trainer, log, done, options.folder)
                on_progress(Progress(done, total, {}, quality))
            if saves:
                _save(trainer, options.folder, done, seconds + now - begun)
                saved = time.monotonic()
            if saves and is_stopping() and done < total:
                raise StoppedError(
                    f"Stopped after step {done} of {total}; everything is saved in"
                    f" {options.folder}. The same command goes on from there."
                )
    log.close()
    return seconds + time.monotonic() - begun


def _validate(trainer: Trainer, log: _Log, done: int, folder: Path) -> Quality:
    with seeded(trainer.config.seed, 0):
        quality = trainer.evaluate("validation", trainer.config.validation_samples)
        (folder / "samples").mkdir(exist_ok=True)
        trainer.preview(folder / "samples" / f"step-{done:06d}")
    log.write(done, {f"validation/{quality.metric}": quality.value}, quality=quality)
    return quality


def _resume(trainer: Trainer, folder: Path) -> tuple[int, float]:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0
    document = read_plain(path)
    mine = trainer.config.model_dump(mode="json")
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputFileError(f"{path} is no checkpoint of a training. Choose another --folder.")
    theirs = _with_defaults(trainer, document["config"])
    if theirs != mine:
        changed = sorted(k for k in mine if theirs.get(k) != mine[k])
        raise UsageError(
            f"{path} belongs to another configuration (other {', '.join(changed)})."
            " Choose another --folder, or delete it to start anew."
        )
    trainer.load_state(document["state"])
    return int(document["done"]), float(document["seconds"])


def _with_defaults(trainer: Trainer, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with settings that are newer than it at their defaults."""
    try:
        return type(trainer.config).model_validate(config).model_dump(mode="json")
    except ValidationError:
        return dict(config)


def _save(trainer: Trainer, folder: Path, done: int, seconds: float) -> None:
    document = {
        "format": FORMAT,
        "config": trainer.config.model_dump(mode="json"),
        "done": done,
        "seconds": seconds,
        "state": trainer.state(),
    }
    write_torch(folder / "checkpoint.pt", document)


def _require_finite(losses: Mapping[str, float], done: int) -> None:
    bad = [name for name, value in losses.items() if value != value or abs(value) == float("inf")]
    if bad:
        raise PassError(
            f"Training diverged: {', '.join(bad)} is not finite after step {done}."
            " Lower the learning rate, or set precision to fp32."
        )


class _Log:
    """`metrics.jsonl` and TensorBoard events; lines after the resumed step are dropped."""

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboardX import SummaryWriter

        path = folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if _step_of(line) <= start]
        write_bytes(path, "".join(kept).encode())
        self._file = path.open("a")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)

    def write(self, step: int, values: Mapping[str, float], **more: Any) -> None:
        record = {"step": step, **values, **{k: asdict(v) for k, v in more.items()}}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def _step_of(line: str) -> float:
    """Return a line's step; a line that a kill cut off belongs to no step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a flag, so that a step is never cut in half."""
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
