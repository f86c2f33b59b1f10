"""The steps from FP32 to a graph that quantization begins with: folded, lowered, spelled.

Each takes `take`, which runs one pass: the gate's candidates keep what it makes in a cache, an
analysis does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .artifact import Artifact
from .errors import PassError, first_line
from .passes.operators import all_nodes

__all__ = ["Note", "Take", "fold", "lower", "spell"]

Take = Callable[[str, Artifact, Mapping[str, Any]], Artifact]  # pass, artifact, settings
Note = Callable[[str], None]


def fold(baseline: Artifact, take: Take) -> Artifact:
    """Return the graph cleaned; raises PassError."""
    # Some forms of a lowered ConvTranspose need Col2Im, which came with opset 18.
    return take("fold", baseline, {"opset": 18} if _has_transposed(baseline) else {})


def lower(folded: Artifact, take: Take, note: Note) -> Artifact | None:
    """Return the graph with ConvTranspose as Convs for integers; None where that is not to be had.

    Why it failed is noted.
    """
    if not _has_transposed(folded):
        return None
    try:
        return take("lower", folded, {"precision": "integer"})
    except PassError as error:
        note(f"ConvTranspose was not lowered for integers: {first_line(error)}")
        return None


def spell(base: Artifact, take: Take, note: Note) -> Artifact:
    """Return the graph with its activations in operators that have integer kernels.

    Where that fails it comes back as it was, and why is noted.
    """
    try:
        return take("activations", base, {})
    except PassError as error:
        note(f"Activations were not spelled for integers: {first_line(error)}")
        return base


def _has_transposed(artifact: Artifact) -> bool:
    return any(node.op_type == "ConvTranspose" for node in all_nodes(artifact.payload.graph))
