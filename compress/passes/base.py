"""What a pass is: artifact in, new artifact out, numbers checked, nothing shown."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from aigc_compress.artifact import Artifact
from aigc_compress.coach import Coach
from aigc_compress.meter import Clock, Meter
from aigc_compress.task import Feeds, OnStep, Runner, quiet

__all__ = ["Context", "Pass", "quiet_library"]


@dataclass(frozen=True)
class Context:
    """What a pass may use beside its artifact.

    Attributes:
        check_feeds: sets of feeds of different sizes; a pass proves itself on them.
        calibration: sets of feeds that the ranges of activations are read from.
        seed: of everything random.
        on_step: called with (done, total) on long work.
        meter: what tells a pass which of several graphs is the fastest; None: nothing does.
        kept: what passes found out and later candidates can use again, by key.
        score: how good a runner's outputs are, higher is better; None: SQNR against FP32 counts.
        coach: what trains models and knows their loss; None: nothing does.
        source: the model that the line began with, the teacher of later ones.
        folder: where a training keeps its checkpoints.
        clock: what tells how long a call takes; None: nothing does.
        timing: the feeds of a call whose time counts; None: the smallest of the check feeds.
    """

    check_feeds: tuple[Feeds, ...]
    calibration: Sequence[Feeds] = ()
    seed: int = 0
    on_step: OnStep = field(default=quiet)
    meter: Meter | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    score: Callable[[Runner], float] | None = None
    coach: Coach | None = None
    source: Artifact | None = None
    folder: Path | None = None
    clock: Clock | None = None
    timing: Feeds | None = None


class Pass(Protocol):
    """One step of the line; it knows no screen, no clock and no other pass."""

    name: str
    config: type[BaseModel]

    def run(self, artifact: Artifact, config: BaseModel, context: Context) -> Artifact:
        """Return the artifact that this pass makes; raises PassError when it breaks a promise."""
        ...


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """Silence a library's prints, warnings and logs; what matters is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
