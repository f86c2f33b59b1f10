"""Clean a graph without changing its numbers: a current opset, constants and BatchNorm folded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession, optimize_offline
from aigc_compress.errors import PassError, first_line

from .base import Context

__all__ = ["FoldConfig", "FoldPass"]

MOST_GROWTH, SMALL_BYTES = 1.5, 1_000_000


class FoldConfig(BaseModel):
    """Settings of the folding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opset: int = Field(
        default=17, ge=13, le=23, description="older graphs are converted up to this one"
    )
    least_sqnr_db: float = Field(
        default=80.0, gt=0, description="agreement with the graph before, in dB"
    )


class FoldPass:
    """Opset conversion, onnxscript's optimizer, then ONNX Runtime's basic level.

    Each of the three is kept only if the graph still computes the same; what was given up, and
    why, stands in the step's numbers.
    """

    name = "fold"
    config = FoldConfig

    def run(self, artifact: Artifact, config: FoldConfig, context: Context) -> Artifact:
        """Return the folded graph; at worst the graph as it came."""
        model: ModelProto = artifact.payload
        reference = _outputs(model, context)
        given_up: dict[str, str] = {}
        for name, rewrite in (
            ("opset", lambda graph: _raise_opset(graph, config.opset)),
            ("onnxscript", _optimize),
            ("onnxruntime", _optimize_basic),
        ):
            try:
                candidate = rewrite(model)
                agreement = lowest_agreement_db(reference, _outputs(candidate, context))
                if agreement < config.least_sqnr_db:
                    raise PassError(f"outputs agree to {agreement:.0f} dB only")
                _require_no_growth(model, candidate)
                model = candidate
            except Exception as error:  # third-party rewriters fail in ways of their own
                given_up[name] = first_line(error)[:200]
        numbers = {
            "nodes": {"before": len(artifact.payload.graph.node), "after": len(model.graph.node)},
            "given_up": given_up,
        }
        return artifact.then(
            model, Step(self.name, config.model_dump(), None, numbers), stage="onnx"
        )


def _require_no_growth(before: ModelProto, after: ModelProto) -> None:
    """Refuse a folding that stores large computed constants (a ConstantOfShape of millions)."""
    sizes = before.ByteSize(), after.ByteSize()
    if sizes[1] > MOST_GROWTH * sizes[0] + SMALL_BYTES:
        raise PassError(f"it would grow the graph from {sizes[0]} to {sizes[1]} bytes")


def _raise_opset(model: ModelProto, opset: int) -> ModelProto:
    from onnx import version_converter

    current = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return version_converter.convert_version(model, opset) if current < opset else model


def _optimize(model: ModelProto) -> ModelProto:
    import onnx_ir as ir
    from onnxscript import optimizer, rewriter

    graph = ir.from_proto(model)
    optimizer.optimize(graph, input_size_limit=2**31, output_size_limit=2**31)
    return ir.to_proto(rewriter.rewrite(graph))


def _optimize_basic(model: ModelProto) -> ModelProto:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        optimize_offline(model.SerializeToString(), path, level="basic")
        folded = onnx.load(path)
    _drop_unused_domains(folded)
    return folded


def _drop_unused_domains(model: ModelProto) -> None:
    """Drop the domains that ONNX Runtime lists without using: they make checkers suspicious."""
    used = Counter(node.domain for node in model.graph.node)
    kept = [o for o in model.opset_import if o.domain in ("", "ai.onnx") or used[o.domain]]
    if any(node.op_type in ("If", "Loop", "Scan") for node in model.graph.node):
        return
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _outputs(model: ModelProto, context: Context) -> list[dict[str, np.ndarray]]:
    session = OrtSession(Artifact("onnx", model), threads=1)
    return [session.run(feeds) for feeds in context.check_feeds]
