"""Clean a graph without changing its numbers, in steps that are checked one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step, graph_tensors
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError, first_line

from .base import Context, quiet_library
from .folding import (
    absorb_affine,
    absorb_batch_norm,
    drop_dead_ends,
    fix_reshapes,
    fold_constants,
    fold_dequantized,
    inline_functions,
    make_weights_constant,
    name_activations,
    raise_opset,
    rewrite_with_onnxruntime,
    rewrite_with_onnxscript,
    share_duplicates,
    store_shapes,
)
from .operators import all_nodes

__all__ = ["FoldConfig", "FoldPass"]

MOST_GROWTH, SMALL_BYTES = 1.5, 1_000_000

Rewrite = Callable[[ModelProto], tuple[ModelProto, int]]
Outputs = list[dict[str, NDArray[Any]]]


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
    """A line of rewrites, from the current opset to stored shapes.

    Each is kept only if the graph still computes the same and has not grown. The step's numbers
    tell what each did (`rewrites`: how many nodes, inputs, shapes ...), which types of nodes are
    `gone`, and what was given up and why.
    """

    name = "fold"
    config = FoldConfig

    def run(self, artifact: Artifact, config: FoldConfig, context: Context) -> Artifact:
        """Return the folded graph; at worst the graph as it came.

        Raises:
            PassError: ONNX Runtime does not run the graph as it came, or an output is no tensor.
        """
        before: ModelProto = artifact.payload
        _require_tensors(before)
        promise = _Promise(before, _outputs(before, context), config, context)
        model, counts, given_up = before, {}, {}
        for name, rewrite in _rewrites(config, context).items():
            try:
                with quiet_library():
                    candidate, count = rewrite(model)
                if count > 0:
                    model, counts[name] = promise.kept_by(candidate), count
            except Exception as error:  # third-party rewriters fail in ways of their own
                given_up[name] = first_line(error)[:200]
        numbers = {**_nodes(before, model), "rewrites": counts, "given_up": given_up}
        step = Step(self.name, config.model_dump(), None, numbers)
        return artifact.then(model, step, stage="onnx")


def _require_tensors(model: ModelProto) -> None:
    for value in model.graph.output:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise PassError(f"The output {value.name} is a {kind}; only tensors can be compared.")


def _rewrites(config: FoldConfig, context: Context) -> Mapping[str, Rewrite]:
    """Return the rewrites by name, in the order in which each helps the next."""
    return {
        "inputs": make_weights_constant,
        "functions": inline_functions,
        "opset": partial(raise_opset, opset=config.opset),
        "constants": fold_constants,
        "dequantize": fold_dequantized,
        "activations": name_activations,
        "batchnorm": absorb_batch_norm,
        "affine": absorb_affine,
        "reshapes": fix_reshapes,
        "onnxscript": rewrite_with_onnxscript,
        "onnxruntime": rewrite_with_onnxruntime,
        "dead_ends": drop_dead_ends,
        "duplicates": share_duplicates,
        "shapes": partial(store_shapes, feeds=context.check_feeds),
    }


@dataclass(frozen=True)
class _Promise:
    """What every rewrite keeps: the face, the size and the numbers of the graph as it came."""

    model: ModelProto
    outputs: Outputs
    config: FoldConfig
    context: Context

    def kept_by(self, candidate: ModelProto) -> ModelProto:
        """Return the candidate with its face restored; raises PassError where it breaks one."""
        candidate = _with_face(candidate, self.model)
        _require_no_growth(self.model, candidate)
        agreement = lowest_agreement_db(self.outputs, _outputs(candidate, self.context))
        if agreement < self.config.least_sqnr_db:
            raise PassError(f"outputs agree to {agreement:.0f} dB only")
        return candidate


def _with_face(model: ModelProto, original: ModelProto) -> ModelProto:
    """Return the graph with the inputs and outputs as they were declared.

    Rewriters write what they infer over the declared shapes, and may infer wrongly.

    Raises:
        PassError: names, order or dtypes are others, so the declarations do not fit.
    """
    faces = [
        [[(spec.name, spec.dtype) for spec in side] for side in graph_tensors(each)]
        for each in (original, model)
    ]
    if faces[0] != faces[1]:
        raise PassError(f"it changed the inputs and outputs from {faces[0]} to {faces[1]}")
    declared = {each.name: each for each in (*original.graph.input, *original.graph.output)}
    faced = ModelProto()
    faced.CopyFrom(model)
    for value in (*faced.graph.input, *faced.graph.output):
        value.CopyFrom(declared[value.name])
    return faced


def _require_no_growth(before: ModelProto, after: ModelProto) -> None:
    """Refuse a folding that stores large computed constants (a ConstantOfShape of millions)."""
    sizes = before.ByteSize(), after.ByteSize()
    if sizes[1] > MOST_GROWTH * sizes[0] + SMALL_BYTES:
        raise PassError(f"it would grow the graph from {sizes[0]} to {sizes[1]} bytes")


def _nodes(before: ModelProto, after: ModelProto) -> dict[str, dict[str, int]]:
    """Return how many nodes there were and are, inner graphs included, and by type what went."""
    types = [Counter(node.op_type for node in all_nodes(each.graph)) for each in (before, after)]
    return {
        "nodes": {"before": types[0].total(), "after": types[1].total()},
        "gone": dict(types[0] - types[1]),
    }


def _outputs(model: ModelProto, context: Context) -> Outputs:
    session = OrtSession(Artifact("onnx", model), threads=1)
    return [session.run(feeds) for feeds in context.check_feeds]
