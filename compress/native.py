"""The INT8 that an engine with a compiler of its own wants, as a candidate of the gate.

The gate's other candidates are made for ONNX Runtime, whose integer operators stand one by one.
OpenVINO and TensorRT join operators themselves, and want borders before layers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .artifact import Artifact
from .cache import Cache
from .engine_int8 import Int8Config, Int8Judge, search_int8
from .engines import ENGINES
from .errors import NotOnThisMachineError, PassError, first_line
from .gate import Candidate
from .passes import PASSES, Context, LowerConfig, OpenVinoConfig, TensorRtConfig
from .pipeline import run_passes
from .preparing import fold
from .schemes import Scheme

__all__ = ["native_candidate"]


def native_candidate(
    engine: str,
    baseline: Artifact,
    judge: Int8Judge,
    context: Context,
    *,
    scheme: Scheme,
    cache: Cache,
) -> Candidate | None:
    """Return INT8 as an engine wants it, or why there is none; None: it wants ONNX Runtime's.

    Args:
        engine: that it is for.
        baseline: the FP32 graph.
        judge: tells what is within the budget.
        context: feeds, calibration, meter.
        scheme: of the processor that the answer is for.
        cache: what was made before the run was killed.
    """
    dialect = ENGINES[engine].int8_pass
    if dialect not in ("openvino", "tensorrt"):
        return None

    def take(name: str, before: Artifact, settings: Mapping[str, Any]) -> Artifact:
        return run_passes(before, [(name, PASSES[name].config(**settings))], context)

    def made() -> Artifact:
        base, config = fold(baseline, take), _config(dialect, scheme)
        if dialect == "openvino":
            lowering = LowerConfig(precision="integer", engine="openvino")
            base = run_passes(base, [("lower", lowering)], context)
        return search_int8(base, config, context, judge)[0].graph

    name = f"INT8 for {dialect}"
    try:
        about = ["native", dialect, scheme.reduces_range]
        return Candidate(name, cache.artifact(baseline, about, made))
    except (NotOnThisMachineError, PassError) as error:
        return Candidate(f"{name} on {engine}", failure=first_line(error), engine=engine)


def _config(dialect: str, scheme: Scheme) -> Int8Config:
    if dialect == "openvino":
        return OpenVinoConfig(reduce_range=scheme.reduces_range)
    return TensorRtConfig(precision="int8")
