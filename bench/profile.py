"""Where the time of a model goes: ONNX Runtime's own profiler, layer by layer, beside the limit.

The session under the profiler is an ordinary one, layouts of this CPU included. Its nodes are
joined by name with the counted costs of the optimized graph; what exists in the session alone, as
the reordering around blocked (NCHWc) convolutions, has no MACs. The profiler itself costs about a
microsecond per node, so shares are what to read, not sums.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from onnx import ModelProto, NodeProto

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import create_session, optimized, session_options
from aigc_compress.errors import PassError, first_line
from aigc_compress.meter import NodeTime
from aigc_compress.passes.operators import CONTROL, MOVING, all_nodes, is_integer, with_node_names
from aigc_compress.task import Feeds

from .counting import NodeCost, count_graph
from .roofline import Peaks, limit_of

__all__ = [
    "Layer",
    "LayerTime",
    "Role",
    "costliest_float",
    "overhead",
    "profile_layers",
    "profile_outputs",
    "read_times",
]

Role = Literal["border", "reorder", "float", "integer", "other"]
Event = Mapping[str, Any]

CALLS = 30
WARMUP_CALLS = 5
SHORTEST_MS = 0.02
SUFFIX = "_kernel_time"
BLOCKED = "_nchwc"  # after the name of a node's output, where it became a blocked one
TRANSPOSED = re.compile(r"_token_\d+$")  # after the name of a node that was moved to NHWC
BORDER_OPS = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")
REORDER_OPS = ("ReorderInput", "ReorderOutput", "Transpose")


@dataclass(frozen=True)
class Layer:
    """One node of the session.

    Attributes:
        name: the session's name of the node.
        op: operator type.
        ms: median milliseconds per call; graphs inside an If or Loop are counted by their nodes.
        share: of the time of all nodes, 0 to 1.
        macs: multiply-accumulates per call; 0 where the node exists in the session alone.
        weight_bytes: bytes of the constants that it reads.
        is_integer: whether the arithmetic is on integers.
        role: `border` between floats and integers, `reorder` of a layout, `float` or `integer`
            arithmetic, `other` (moves of data, control flow).
        limit_ms: the least time that this machine allows (see `roofline`).
        efficiency: limit over measured time; None where there is nothing to count, or where the
            time is too short for the profiler's clock, which ticks in microseconds.
    """

    name: str
    op: str
    ms: float
    share: float
    macs: int
    weight_bytes: int
    is_integer: bool
    role: Role
    limit_ms: float = 0.0
    efficiency: float | None = None

    @property
    def cost(self) -> dict[str, int]:
        """Return MACs and bytes as `roofline.limit_of` takes them."""
        integer_macs = self.macs if self.is_integer else 0
        return {
            "macs": self.macs,
            "integer_macs": integer_macs,
            "weight_bytes": self.weight_bytes,
        }

    def under(self, peaks: Peaks, *, threads: int, working_set_bytes: int) -> Layer:
        """Return it with the limit and the efficiency that these peaks give."""
        limit = limit_of(self.cost, peaks, threads=threads, working_set_bytes=working_set_bytes)
        is_known = self.ms >= SHORTEST_MS and limit.milliseconds > 0
        reached = limit.efficiency(self.ms) if is_known else None
        return replace(self, limit_ms=limit.milliseconds, efficiency=reached)

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LayerTime:
    """What the profiler told of one node: operator, milliseconds of each call, first output."""

    op: str
    calls_ms: tuple[float, ...]
    output_type: str
    elements: int = 0


def profile_layers(
    model: ModelProto | Artifact,
    feeds: Feeds,
    *,
    threads: int = 1,
    calls: int = CALLS,
    peaks: Peaks,
) -> list[Layer]:
    """Return the layers of a model in the order in which ONNX Runtime first runs them.

    Args:
        model: an ONNX graph.
        feeds: one set of feeds by input name.
        threads: intra-op threads of the session.
        calls: calls that the medians are taken over, after a warm-up.
        peaks: what this machine can do (`roofline.load_peaks`).

    Raises:
        PassError: the graph does not load, or not run on these feeds.
    """
    named = with_node_names(model.payload if isinstance(model, Artifact) else model)
    events = _record(named, feeds, threads=threads, calls=WARMUP_CALLS + calls)
    times = read_times(events, dropped=WARMUP_CALLS)
    graph = optimized(named)
    costs = _joined(times, graph, count_graph(graph, feeds))
    casts = _border_casts(graph)
    total_ms = sum(median(time.calls_ms) for time in times.values())
    weights = sum(cost.weight_bytes for cost in costs.values())
    layers = []
    for name, time in times.items():
        cost = costs.get(name) or NodeCost(name, time.op, 0, 0, 0, is_integer(time.op))
        role: Role = "border" if name in casts else _role(time, is_counted=name in costs)
        layer = _layer(name, time, cost, total_ms=total_ms, role=role)
        layers.append(layer.under(peaks, threads=threads, working_set_bytes=weights))
    return layers


def profile_outputs(
    model: ModelProto, feeds: Feeds, *, threads: int = 1, calls: int = CALLS
) -> dict[str, NodeTime]:
    """Return the times of a session's nodes by the name that the graph gives their first output.

    A node that the session fused from several has the name of the last one's output; what exists in
    the session alone is left out. Arguments and errors as for `profile_layers`.
    """
    named = with_node_names(model)
    events = _record(named, feeds, threads=threads, calls=WARMUP_CALLS + calls)
    times = read_times(events, dropped=WARMUP_CALLS)
    nodes = all_nodes(optimized(named).graph)
    outputs = {node.name: node.output[0] for node in nodes if node.name and node.output}
    found = {}
    for name, time in times.items():
        output = outputs.get(TRANSPOSED.sub("", name))
        if output is None and name.endswith(BLOCKED):
            output = name.removesuffix(BLOCKED)
        if output is not None:
            found[output] = NodeTime(time.op, median(time.calls_ms), time.elements)
    return found


def overhead(layers: Sequence[Layer]) -> dict[str, float]:
    """Return the share of time by role: border, reorder, float, integer, other; they sum to 1."""
    shares: dict[str, float] = dict.fromkeys(("border", "reorder", "float", "integer", "other"), 0)
    for layer in layers:
        shares[layer.role] += layer.share
    return shares


def costliest_float(layers: Sequence[Layer], n: int = 3) -> list[Layer]:
    """Return the `n` layers of float arithmetic that take longest, the longest first."""
    floats = (layer for layer in layers if layer.role == "float")
    return sorted(floats, key=lambda layer: layer.ms, reverse=True)[:n]


def read_times(events: Sequence[Event], *, dropped: int) -> dict[str, LayerTime]:
    """Return what each node took from the profiler's events, without the first `dropped` calls."""
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(SUFFIX)]
    nodes = [e for e in sorted(nodes, key=lambda e: (e["ts"], -e["dur"])) if e["ts"] >= starts[0]]
    spent: dict[str, list[float]] = {}
    firsts: dict[str, Event] = {}
    for event, microseconds in zip(nodes, _own_microseconds(nodes), strict=True):
        name = event["name"].removesuffix(SUFFIX)
        firsts.setdefault(name, event)
        calls = spent.setdefault(name, [0.0] * len(starts))
        calls[bisect_right(starts, event["ts"]) - 1] += microseconds / 1e3
    return {
        name: LayerTime(
            event["args"]["op_name"], tuple(spent[name][dropped:]), *_first_output(event)
        )
        for name, event in firsts.items()
    }


def _record(model: ModelProto, feeds: Feeds, *, threads: int, calls: int) -> list[Event]:
    """Run a session under the profiler and return the events that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = create_session(model.SerializeToString(), options)
        try:
            for _ in range(calls):
                session.run(None, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            told = f"The graph does not run on these feeds: {first_line(error)}"
            raise PassError(told) from error
        finally:
            path = Path(session.end_profiling())
        events: list[Event] = json.loads(path.read_text())
        return events


def _own_microseconds(nodes: Sequence[Event]) -> list[float]:
    """Return the time of each node, that of an If or Loop without the nodes inside it."""
    own = [float(node["dur"]) for node in nodes]
    around: list[int] = []
    for index, node in enumerate(nodes):
        while around and node["ts"] >= nodes[around[-1]]["ts"] + nodes[around[-1]]["dur"]:
            around.pop()
        if around:
            own[around[-1]] -= node["dur"]
        if node["args"]["op_name"] in CONTROL:
            around.append(index)
    return [max(0.0, microseconds) for microseconds in own]


def _first_output(event: Event) -> tuple[str, int]:
    """Return type and number of elements of a node's first output, "" and 0 if it is not told."""
    outputs = event["args"].get("output_type_shape") or [{}]
    for name, shape in outputs[0].items():
        return name, math.prod(shape)
    return "", 0


def _joined(
    times: Mapping[str, LayerTime], graph: ModelProto, costs: Sequence[NodeCost]
) -> dict[str, NodeCost]:
    """Return the costs by the session's names, without the nodes that exist there alone."""
    by_name = {cost.name: cost for cost in costs}
    by_output = {
        output: cost
        for node, cost in zip(graph.graph.node, costs, strict=True)
        for output in node.output
    }
    joined = {}
    for name in times:
        cost = by_name.get(TRANSPOSED.sub("", name))
        if cost is None and name.endswith(BLOCKED):
            cost = by_output.get(name.removesuffix(BLOCKED))
        if cost is not None:
            joined[name] = cost
    return joined


def _border_casts(model: ModelProto) -> set[str]:
    """Return the names of Casts next to a quantizing or an integer operator."""

    def is_border(node: NodeProto) -> bool:
        return node.op_type in BORDER_OPS or is_integer(node.op_type)

    nodes = model.graph.node
    touched = {name for node in nodes if is_border(node) for name in (*node.input, *node.output)}
    return {n.name for n in nodes if n.op_type == "Cast" and touched & {*n.input, *n.output}}


def _role(time: LayerTime, *, is_counted: bool) -> Role:
    if time.op in BORDER_OPS:
        return "border"
    if is_integer(time.op):
        return "integer"
    if time.op in REORDER_OPS and not is_counted:
        return "reorder"
    if time.op in CONTROL or time.op in MOVING or "float" not in time.output_type:
        return "other"
    return "float"


def _layer(name: str, time: LayerTime, cost: NodeCost, *, total_ms: float, role: Role) -> Layer:
    ms = median(time.calls_ms)
    return Layer(
        name,
        time.op,
        ms,
        ms / total_ms if total_ms else 0.0,
        cost.macs,
        cost.weight_bytes,
        cost.is_integer,
        role,
    )
