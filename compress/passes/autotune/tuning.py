"""Neural Compressor's `autotune`, driving our symmetric algorithm.

`autotune` tries configurations in order until one loses little enough. It takes a *relative* loss
of a positive score, so it is shown 1 - loss: its baseline is 1 then, and its relative loss the loss
in the score's own unit, whatever the sign and size of the score.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from .config import Ranges
from .quantizer import Calibrate, quantized

__all__ = ["Scheme", "Trial", "Tuned", "tune"]

ALGORITHM = "aigc_compress_symmetric"
WORST = -math.inf


@dataclass(frozen=True)
class Scheme:
    """How ranges are found, and which modules stay float."""

    ranges: Ranges
    keep_float: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """A scheme that was tried, and its score."""

    scheme: Scheme
    score: float


@dataclass(frozen=True)
class Tuned:
    """What came out: the quantized graph, its scheme, and everything that was tried."""

    graph: GraphModule
    scheme: Scheme
    trials: tuple[Trial, ...]


def tune(
    graph: GraphModule,
    schemes: Sequence[Scheme],
    *,
    baseline: float,
    most_loss: float,
    calibrate: Calibrate,
    score: Callable[[GraphModule], float],
) -> Tuned:
    """Try schemes in order, until the score is at most `most_loss` below that of the floats.

    Where none is, the best one comes back, so the caller looks again.

    Args:
        graph: of floats; left as it was.
        schemes: no two alike.
        baseline: score of the floats.
        most_loss: in the score's unit.
        calibrate: runs an observed graph on the calibration feeds.
        score: higher is better; what is not a number counts as the worst.
    """
    library = importlib.import_module("neural_compressor.torch.quantization")
    trials: list[Trial] = []

    def evaluate(model: GraphModule) -> float:
        scheme: Scheme | None = model.meta.get(ALGORITHM)
        if scheme is None:
            return 1.0
        value = score(model)
        trials.append(Trial(scheme, WORST if math.isnan(value) else value))
        return 1.0 - (baseline - trials[-1].score)

    settings = _algorithm()
    tuning = library.TuningConfig(
        config_set=[settings(each.ranges, json.dumps(each.keep_float)) for each in schemes],
        tolerable_loss=most_loss,
        max_trials=len(schemes),
    )
    best = library.autotune(graph, tuning, eval_fn=evaluate, run_fn=calibrate)
    return Tuned(best, best.meta[ALGORITHM], tuple(trials))


@functools.cache
def _algorithm() -> Any:
    """Register the algorithm, once per process, and return the class of its settings."""
    configs = importlib.import_module("neural_compressor.torch.quantization.config")
    registry = importlib.import_module("neural_compressor.common.base_config")
    utils = importlib.import_module("neural_compressor.torch.utils")
    base: Any = configs.TorchBaseConfig

    class Settings(base):  # type: ignore[misc]
        """The settings of one trial, as Neural Compressor keeps and compares them."""

        name = ALGORITHM
        supported_configs: list[Any] = []  # noqa: RUF012 (the base class's own form)

        def __init__(self, ranges: str = "minmax", keep_float: str = "[]") -> None:
            super().__init__()
            self.ranges = ranges
            self.keep_float = keep_float  # in JSON, as a list would be taken for several trials

        @classmethod
        def register_supported_configs(cls) -> None:
            """Do nothing: every module is looked at by the algorithm itself."""

        @staticmethod
        def get_model_info(model: Any, example_inputs: Any = None) -> list[tuple[str, str]]:
            """Return nothing: the settings hold for the whole graph."""
            return []

        def to_config_mapping(self, config_list: Any = None, model_info: Any = None) -> Any:
            """Return these settings for the whole graph."""
            return OrderedDict({ALGORITHM: self})

        @classmethod
        def get_config_set_for_tuning(cls) -> Any:
            """Return the settings that a tuning without any would try."""
            return cls()

    registry.register_config(framework_name=configs.FRAMEWORK_NAME, algo_name=ALGORITHM)(Settings)
    utils.register_algo(name=ALGORITHM)(_apply)
    return Settings


def _apply(model: GraphModule, settings: Any, *_rest: Any, run_fn: Any, **_more: Any) -> Any:
    """Quantize in the way that Neural Compressor asks its algorithms to."""
    asked = settings[ALGORITHM]
    names = tuple(json.loads(asked.keep_float))
    made = quantized(model, asked.ranges, names, calibrate=run_fn)
    made.meta[ALGORITHM] = Scheme(asked.ranges, names)
    return made
