"""What runs on integers and what does not, node by node, with its share of the time and the reason.

The nodes are those of the graph that ONNX Runtime makes when it loads the file. What it joins with
a neighbour for this very processor has no row of its own, nor has a branch that did not run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnx import ModelProto

from .artifact import Artifact, Step
from .gate import Finding
from .meter import Meter
from .passes import QuantizeConfig
from .passes.operators import all_nodes, with_node_names
from .passes.quantize.blocked import LEFT_BY_SPLIT, Quantization
from .passes.quantize.explained import ExplainedNode, Kind, explain
from .task import Feeds

__all__ = ["NodeReport", "choice_of", "why_not"]

FASTEST_SPLIT, SPLIT = "fastest split", "split of"  # in the names of candidates
FASTER_SO = "left float by the split: measured faster so, borders counted"


@dataclass(frozen=True)
class NodeReport:
    """One node as ONNX Runtime runs it.

    Attributes:
        name: of the node of the file that it comes from, the costliest where several were fused.
        operator: its type, as ONNX Runtime names it.
        kind: integer or float arithmetic, or overhead: borders, moves of data, shapes, control.
        ms: median milliseconds per call, by ONNX Runtime's profiler.
        share: of the time of all nodes, 0 to 1.
        reason: why it is not integer; empty where it is.
        remedy: what would help; empty where nothing does for sure.
    """

    name: str
    operator: str
    kind: Kind
    ms: float
    share: float
    reason: str
    remedy: str

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def why_not(
    artifact: Artifact, meter: Meter, feeds: Feeds, *, choice: str = LEFT_BY_SPLIT
) -> tuple[NodeReport, ...]:
    """Return the nodes of a graph as ONNX Runtime runs it, those that take longest first.

    Args:
        artifact: of floats or quantized.
        meter: what profiles.
        feeds: of a timed call.
        choice: why something is float that could be integer (see `choice_of`).

    Raises:
        PassError: the graph does not load, or does not run on these feeds.
    """
    model = _named(artifact.payload)
    nodes = explain(model, _scheme(artifact.history, choice))
    times = meter.profile(Artifact("onnx", model), feeds)
    ran = [each for each in nodes if each.output in times]
    total_ms = sum(times[each.output].ms for each in ran)
    rows = [_report(each, times[each.output].ms, total_ms) for each in ran]
    return tuple(sorted(rows, key=lambda row: row.ms, reverse=True))


def choice_of(name: str, findings: Collection[Finding]) -> str:
    """Return why something is float that could be integer.

    Args:
        name: of the candidate that was shipped.
        findings: about all candidates.
    """
    if name.startswith("FP32"):
        return f"FP32 was written: {_why_floats(findings)}"
    if FASTEST_SPLIT in name:
        return FASTER_SO
    return LEFT_BY_SPLIT if SPLIT in name else f"{name} leaves it float"


def _report(node: ExplainedNode, ms: float, total_ms: float) -> NodeReport:
    share = ms / total_ms if total_ms else 0.0
    return NodeReport(node.name, node.operator, node.kind, ms, share, node.reason, node.remedy)


def _why_floats(findings: Collection[Finding]) -> str:
    integers = [each for each in findings if not each.name.startswith("FP32")]
    if not integers:
        return "no INT8 form was tried"
    made = [each for each in integers if each.size_bytes is not None]
    if not made:
        return "no INT8 form could be made"
    if all(each.is_outside for each in made):
        return "every INT8 form is outside the quality budget"
    if any(each.is_outside for each in made):
        return "no INT8 form is both faster and within the quality budget"
    return "no INT8 form was shown faster"


def _scheme(history: Sequence[Step], choice: str) -> Quantization:
    steps = [step for step in history if step.name == "quantize"]
    if not steps:
        return Quantization(choice=choice)
    config = QuantizeConfig.model_validate(dict(steps[-1].config))
    return Quantization(config, tuple(steps[-1].numbers.get("scheme", ())), choice)


def _named(model: ModelProto) -> ModelProto:
    """Return a copy in which every node has a name of its own, those of inner graphs too."""
    named = with_node_names(model)
    taken = Counter(node.name for node in all_nodes(named.graph))
    top = {id(node) for node in named.graph.node}
    for index, node in enumerate(all_nodes(named.graph)):
        if id(node) not in top and (not node.name or taken[node.name] > 1):
            node.name = f"{node.name or node.op_type}__inner_{index}"
    return named
