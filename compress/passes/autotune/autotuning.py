"""The autotune pass: a torch module becomes an ONNX graph with symmetric Q/DQ.

torch.export captures the module, torchao quantizes the captured graph, Neural Compressor decides
which of several schemes is good enough, and torch.onnx writes it down.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from aigc_compress.artifact import Artifact, Step
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.engines.torch import TorchRunner
from aigc_compress.errors import (
    NotOnThisMachineError,
    PassError,
    UsageError,
    first_line,
    unknown_name,
)
from aigc_compress.passes.base import Context, quiet_library
from aigc_compress.passes.export import ExportConfig, export_graph
from aigc_compress.passes.operators import count_operators
from aigc_compress.task import Feeds

from .agreement import require_agreement
from .config import AutotuneConfig
from .symmetric import require_symmetric

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from .program import Program
    from .tuning import Scheme, Tuned

__all__ = ["AutotunePass"]

PACKAGES = ("neural_compressor", "torchao")
INSTALL = "pip install 'aigc-compress[neural-compressor]'"
FEW = 4  # sets of feeds that sensitivity is measured on
LEAST_CAPTURED_DB = 60.0  # a captured graph computes the module itself, up to rounding


class AutotunePass:
    """Quantize symmetrically, with as many modules on integers as the score allows."""

    name = "autotune"
    config = AutotuneConfig

    def run(self, artifact: Artifact, config: AutotuneConfig, context: Context) -> Artifact:
        """Return the best INT8 graph; `numbers` tell the trials and whether one was good enough.

        The check feeds' first set is traced, so its sizes along dynamic axes must not be 1.

        Raises:
            NotOnThisMachineError: Neural Compressor or torchao is not installed.
            UsageError: the artifact is no torch module, or a module is named that is not there.
            PassError: torch refuses the module, nothing in it can be quantized, or the ONNX graph
                differs from the quantized module.
        """
        if artifact.stage != "torch":
            raise UsageError("autotune quantizes torch modules; for ONNX graphs there is quantize.")
        _require_packages()
        with quiet_library():
            return _Autotuning(artifact.payload, config, context).made_from(artifact)


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise NotOnThisMachineError(
            f"autotune needs {' and '.join(missing)}. To install: {INSTALL}"
        )


class _Autotuning:
    """One run, from the module to the graph."""

    def __init__(self, module: Any, config: AutotuneConfig, context: Context) -> None:
        from .layers import quantizable_modules
        from .program import capture

        self._config, self._context = config, context
        self._references = [TorchRunner(module).run(feeds) for feeds in context.check_feeds]
        self._program = capture(module, context.check_feeds[0], config.dynamic_axes)
        self._require_captured()
        self._modules = quantizable_modules(self._program.captured)
        self._require_names()
        self._baseline = self._score(self._program.captured)
        if not math.isfinite(self._baseline):
            raise PassError(f"The score of the float module is {self._baseline}, no finite number.")

    def made_from(self, artifact: Artifact) -> Artifact:
        sensitivity = self._sensitivity()
        tuned = self._tuned(sensitivity)
        program, feeds = self._as_program(tuned.graph), self._context.check_feeds
        outputs = [program.run(each) for each in feeds]
        model = export_graph(program, feeds, outputs, self._export_config())
        require_symmetric(model)
        least_db = self._config.least_agreement_db
        numbers = {
            **self._told(tuned),
            "sensitivity_db": sensitivity,
            "operators": {**count_operators(model), "reasons": self._reasons(tuned, sensitivity)},
            "agreement_db": require_agreement(model, feeds, outputs, least_db=least_db),
            "sqnr_in_onnx_runtime_db": self._sqnr_in_onnx_runtime(model),
        }
        settings = self._config.model_dump(mode="json", exclude={"dynamic_axes"})
        step = Step(AutotunePass.name, settings, self._context.seed, numbers)
        return artifact.then(model, step, stage="onnx")

    def _require_captured(self) -> None:
        """Raise PassError where the captured graph differs from the module at any check feeds."""
        try:
            agreement = self._sqnr_db(self._program.captured)
        except RuntimeError as error:
            raise PassError(
                f"What torch.export captured does not run at other sizes: {first_line(error)}"
            ) from error
        if agreement < LEAST_CAPTURED_DB:
            raise PassError(
                f"What torch.export captured agrees with the module at {agreement:.0f} dB only;"
                f" {LEAST_CAPTURED_DB:.0f} dB are the least."
            )

    def _require_names(self) -> None:
        if not self._modules:
            raise PassError(
                "Nothing can be quantized: the module holds no convolution or linear layer that"
                " torch.export shows with constant weights."
            )
        for name in self._config.may_stay_float or ():
            if name not in self._modules:
                raise unknown_name("module to quantize", name, self._modules)

    def _sensitivity(self) -> dict[str, float]:
        from .sensitivity import measure_sensitivity

        few = self._context.calibration[:FEW] or self._context.check_feeds
        return measure_sensitivity(
            self._program,
            self._modules,
            few,
            calibrate=self._calibrate_on(few),
            on_module=lambda done, _total: self._context.on_step(done, self._steps),
        )

    @property
    def _steps(self) -> int:
        return len(self._modules) + self._config.most_trials

    def _tuned(self, sensitivity: dict[str, float]) -> Tuned:
        from .sensitivity import schemes_to_try
        from .tuning import tune

        feeds = self._context.calibration or self._context.check_feeds
        tuned = tune(
            self._program.captured,
            schemes_to_try(sensitivity, self._config),
            baseline=self._baseline,
            most_loss=self._most_loss(),
            calibrate=self._calibrate_on(feeds),
            score=self._score,
        )
        self._context.on_step(self._steps, self._steps)
        return tuned

    def _most_loss(self) -> float:
        if self._context.score is not None:
            return self._config.tolerable_loss
        return max(0.0, self._baseline - self._config.least_sqnr_db)

    def _score(self, graph: GraphModule) -> float:
        """Return the score that was handed in, or SQNR against the module in dB."""
        if self._context.score is not None:
            return float(self._context.score(self._as_program(graph)))
        return self._sqnr_db(graph)

    def _sqnr_db(self, graph: GraphModule) -> float:
        program = self._as_program(graph)
        outputs = [program.run(feeds) for feeds in self._context.check_feeds]
        return lowest_agreement_db(self._references, outputs)

    def _as_program(self, graph: GraphModule) -> Program:
        from .program import Program

        return Program(graph, self._program.input_names, self._program.output_names)

    def _calibrate_on(self, feeds: Sequence[Feeds]) -> Callable[[GraphModule], None]:
        def calibrate(graph: GraphModule) -> None:
            observed = self._as_program(graph)
            for each in feeds:
                observed.run(each)

        return calibrate

    def _export_config(self) -> ExportConfig:
        return ExportConfig(opset=self._config.opset, dynamic_axes=self._config.dynamic_axes)

    def _sqnr_in_onnx_runtime(self, model: ModelProto) -> float:
        """Return the SQNR against the module as ONNX Runtime runs the graph, in dB."""
        session = OrtSession(Artifact("onnx", model), threads=1)
        found = [session.run(feeds) for feeds in self._context.check_feeds]
        return lowest_agreement_db(self._references, found)

    def _told(self, tuned: Tuned) -> dict[str, Any]:
        """Return score, trials and choice.

        The graph is scored again: a best one that is not good enough comes back just the same.
        """
        value = self._score(tuned.graph)
        goal = self._baseline - self._most_loss()
        trials = [{**_document(each.scheme), "score": _finite(each.score)} for each in tuned.trials]
        return {
            "score": {
                "metric": "SQNR dB" if self._context.score is None else "the score handed in",
                "float": self._baseline,
                "goal": goal,
                "value": _finite(value),
                "is_met": value >= goal,
            },
            "trials": trials,
            "chosen": _document(tuned.scheme),
        }

    def _reasons(self, tuned: Tuned, sensitivity: dict[str, float]) -> dict[str, str]:
        """Return why modules stayed float, by name."""
        from .layers import uncovered_reasons

        chosen = {
            name: f"quantized alone it leaves an SQNR of {sensitivity[name]:.1f} dB"
            for name in tuned.scheme.keep_float
        }
        return {**uncovered_reasons(self._program.captured), **chosen}


def _document(scheme: Scheme) -> dict[str, Any]:
    return {"ranges": scheme.ranges, "keep_float": list(scheme.keep_float)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
