"""The activations pass: spell activations so that they run well on integers, or on floats."""

from __future__ import annotations

from typing import Any, Literal

from numpy.typing import NDArray
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError
from aigc_compress.passes.base import Context
from aigc_compress.passes.folding import absorb_affine, name_activations
from aigc_compress.passes.operators import BORDERS, all_nodes

from .spelling import spell_for_integers

__all__ = ["ActivationsConfig", "ActivationsPass"]

Outputs = list[dict[str, NDArray[Any]]]
# Where a graph rounds to integers, a difference in the last bit of a float grows to a whole step.
LEAST_SQNR_OF_INTEGERS_DB = 10.0


class ActivationsConfig(BaseModel):
    """Settings of the spelling of activations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spelling: Literal["integer", "float"] = Field(
        default="integer",
        description="integer: operators with integer kernels; float: those that join a Conv",
    )
    least_sqnr_db: float = Field(
        default=80.0,
        gt=0,
        description="agreement with the graph before, in dB; 10 is enough where that is quantized",
    )


class ActivationsPass:
    """Write HardSwish, HardSigmoid and the like anew, their factors in the Convs beside them.

    `integer` makes a graph to quantize: on floats it is slower than the one before. `float` makes
    the operators that ONNX Runtime joins with a Conv, also of what a split leaves on floats in a
    graph that is quantized already. The step's numbers tell `written`, how many activations were,
    and `absorbed`, how many factors went into weights.
    """

    name = "activations"
    config = ActivationsConfig

    def run(self, artifact: Artifact, config: ActivationsConfig, context: Context) -> Artifact:
        """Return the graph so spelled; the graph as it came where there is nothing to do.

        Raises:
            PassError: ONNX Runtime does not run the graph, or the outputs agree too little.
        """
        before: ModelProto = artifact.payload
        model, written = name_activations(before)
        absorbed = 0
        if config.spelling == "integer":
            model, written = spell_for_integers(model)
        if written:
            model, absorbed = absorb_affine(model)
            _require_agreement(before, model, config, context)
        numbers = {"written": written, "absorbed": absorbed}
        step = Step(self.name, config.model_dump(), None, numbers)
        return artifact.then(model if written else before, step, stage="onnx")


def _require_agreement(
    before: ModelProto, after: ModelProto, config: ActivationsConfig, context: Context
) -> None:
    least = config.least_sqnr_db
    if any(node.op_type in BORDERS for node in all_nodes(before.graph)):
        least = min(least, LEAST_SQNR_OF_INTEGERS_DB)
    agreement = lowest_agreement_db(_outputs(before, context), _outputs(after, context))
    if agreement < least:
        raise PassError(
            f"With its activations spelled for {config.spelling}s the graph agrees to"
            f" {agreement:.0f} dB only; {least:.0f} dB is asked for. Use the graph as it was."
        )


def _outputs(model: ModelProto, context: Context) -> Outputs:
    session = OrtSession(Artifact("onnx", model), threads=1)
    return [session.run(feeds) for feeds in context.check_feeds]
