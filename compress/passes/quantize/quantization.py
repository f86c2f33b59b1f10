"""The quantize pass: one scheme for a graph, by operator and settings.

What has no integer kernel in ONNX Runtime keeps float arithmetic, ConvTranspose with weights stored
as INT8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from onnx import ModelProto

from aigc_compress.artifact import Artifact, Step
from aigc_compress.errors import PassError
from aigc_compress.passes.base import Context
from aigc_compress.passes.operators import (
    BORDERS,
    RECURRENT,
    all_nodes,
    is_integer,
    operators_at_run_time,
)
from aigc_compress.passes.store import store_weights

from .blocked import Quantization
from .config import Mode, QuantizeConfig
from .dynamic import quantize_dynamic
from .explained import float_reasons
from .repairs import asked
from .static import quantize_static

__all__ = ["QuantizePass"]

Part = Callable[[ModelProto, QuantizeConfig, Context], tuple[ModelProto, dict[str, Any]]]


class QuantizePass:
    """Quantize with one scheme, then look at what really runs on integers."""

    name = "quantize"
    config = QuantizeConfig

    def run(self, artifact: Artifact, config: QuantizeConfig, context: Context) -> Artifact:
        """Return the INT8 graph; `numbers` tell the scheme and what became of every operator.

        Raises:
            PassError: nothing in the graph could be quantized, or the result does not load.
        """
        model: ModelProto = artifact.payload
        before = Counter(node.op_type for node in all_nodes(model.graph))
        _refuse_quantized(before)
        scheme: dict[str, Any] = {}
        parts = _parts(model, before, config.mode)
        _require_static(parts, config)
        for part in parts:
            model, told = part(model, config, context)
            scheme.update(told)
        operators = operators_at_run_time(model)
        if not operators["int8"] and not operators["weights_only"]:
            failures = [f for part in scheme.values() for f in part.get("given_up", ())]
            why = f" On the way: {'; '.join(failures)}" if failures else ""
            raise PassError(
                f"Nothing was quantized: the graph holds {dict(before.most_common(8))}, and mode"
                f" {config.mode!r} covers none of it that has constant weights.{why}"
            )
        operators["reasons"] = float_reasons(model, Quantization(config, tuple(scheme)))
        numbers = {"scheme": scheme, "operators": operators}
        step = Step(self.name, config.model_dump(), context.seed, numbers)
        return artifact.then(model, step, stage="onnx")


def _refuse_quantized(before: Counter[str]) -> None:
    found = sorted(op for op in before if is_integer(op) or op in BORDERS)
    if found:
        raise PassError(
            f"The graph is quantized already: it holds {', '.join(found)}."
            " Quantize the floating-point model that it was made from."
        )


def _require_static(parts: list[Part], config: QuantizeConfig) -> None:
    """Refuse repairs that would be passed over in silence."""
    if asked(config) and quantize_static not in parts:
        raise PassError(
            f"{', '.join(asked(config))} repair static quantization, and mode {config.mode!r}"
            " makes nothing static in this graph. Drop them, or try mode 'static'."
        )


def _parts(model: ModelProto, before: Counter[str], mode: Mode) -> list[Part]:
    """Return the parts of the work that this graph and mode ask for.

    The static part sees the main graph alone, the dynamic one the graphs inside If and Loop too.
    """
    parts: list[Part] = []
    is_recurrent = any(before[op] for op in RECURRENT)
    has_anchor = any(node.op_type in ("Conv", "Gemm") for node in model.graph.node)
    if mode == "static" or (mode == "auto" and has_anchor):
        parts.append(quantize_static)
    if mode == "dynamic" or (mode == "auto" and (is_recurrent or not parts)):
        parts.append(quantize_dynamic)
    if before["ConvTranspose"] and mode != "dynamic":
        parts.append(_store_transposed)
    return parts


def _store_transposed(
    model: ModelProto, _config: QuantizeConfig, _context: Context
) -> tuple[ModelProto, dict[str, Any]]:
    stored, converted = store_weights(model, ["ConvTranspose"])
    told = {"operators": [*converted], "weights": "int8, symmetric, per output channel"}
    return stored, {
        "weights_only": told | {"converted": sum(converted.values())}
    } if converted else {}
