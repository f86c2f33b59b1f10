"""Round weights up or down so that a layer's outputs, not its weights, come closest to FP32.

Rounding each weight to its nearest integer is best where inputs are independent of each other. They
are not: with the second moment H = E[x x^T] of a layer's inputs, rounding errors e cost e H e^T per
output channel, and one error can make up for another. Nagel et al. 2020, "Up or Down? Adaptive
Rounding for Post-Training Quantization" (AdaRound), state this choice between two integers for each
weight (section 3), and relax it for gradient descent. Here it is descended weight by weight, as
exact minimization of one variable at a time, from the nearest integers on: the cost never rises, no
weight moves by more than one step, and nothing is random but which inputs are looked at. On the
reference cnn it gains what 500 steps of AdaRound's relaxation gain, in a tenth of the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aigc_compress.errors import PassError
from aigc_compress.task import Feeds, OnStep

from .operators import STORED_SUFFIX, all_nodes, with_node_names
from .probe import Probe
from .windows import input_rows

__all__ = ["Rounded", "round_weights"]

Floats = NDArray[np.float64]
Array = NDArray[Any]

LAYERS = ("Conv", "Gemm", "MatMul")
INTEGERS = (TensorProto.INT8, TensorProto.UINT8)
ROWS = 4096  # of inputs that the moments of a layer are taken over
SWEEPS = 2
BLOCK = 128  # weights of an output between two updates of the whole gradient
DAMPING = 0.01  # of the mean moment, so that inputs hardly seen are not relied on
MOST_BYTES = 2**28  # of second moments at a time


@dataclass(frozen=True)
class Rounded:
    """What became of one layer's weights.

    Attributes:
        moved: how many are another integer than before.
        weights: how many there are.
        error: squared error of the outputs on the inputs seen, as a share of what it was.
    """

    moved: int
    weights: int
    error: float


def round_weights(
    float_model: ModelProto,
    quantized_model: ModelProto,
    feeds: Sequence[Feeds],
    *,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> tuple[ModelProto, dict[str, Rounded]]:
    """Return the quantized graph with weights rounded for its outputs, and what was done by layer.

    Args:
        float_model: what the other was made of; layers pair up by operator and node name.
        quantized_model: a graph whose int8 or uint8 weights stand behind DequantizeLinear, or as
            `store` writes them.
        feeds: calibration feeds; the float graph's inputs are what the moments are taken over.
        seed: of the choice of inputs, of those that are too many.
        on_step: called with (done, total) layers.

    Returns:
        The graph, in which no weight differs by more than 1 from what it was, and the layers by
        name: Conv, Gemm and MatMul with a constant weight of their own, one scale per output.

    Raises:
        PassError: there are no feeds, or ONNX Runtime does not run the float graph.
    """
    if not feeds:
        raise PassError("Adaptive rounding needs calibration feeds, and there are none.")
    rounded = ModelProto()
    rounded.CopyFrom(quantized_model)
    named = with_node_names(float_model)
    layers = list(_layers(named, rounded))
    told: dict[str, Rounded] = {}
    for part in _parts(layers):
        moments = _moments(named, part, feeds, seed=seed)
        for layer in part:
            grid, told[layer.node.name] = _round(layer, moments[layer.node.name])
            layer.store(grid)
            if on_step is not None:
                on_step(len(told), len(layers))
    return rounded, told


@dataclass(frozen=True)
class _Form:
    """How a weight's table holds the rows of a matrix, one for each output.

    Attributes:
        shape: of the table.
        groups: of a Conv, else 1.
        is_turned: whether outputs are the last axis, not the first.
        axis: of the scales, where there are several.
    """

    shape: tuple[int, ...]
    groups: int
    is_turned: bool
    axis: int

    def rows(self, values: Array) -> Floats:
        """Return a table, or scales or zero points of it, as (groups, outputs, inputs)."""
        spread = values
        if values.ndim == 1:
            spread = values.reshape([-1 if i == self.axis else 1 for i in range(len(self.shape))])
        full = np.broadcast_to(spread.astype(np.float64), self.shape)
        turned = full.T if self.is_turned else full
        return turned.reshape(self.groups, turned.shape[0] // self.groups, -1)

    def table(self, rows: Array) -> Array:
        """Return the table that has these rows."""
        return rows[0].T if self.is_turned else rows.reshape(self.shape)


@dataclass(frozen=True)
class _Layer:
    """One layer whose weights can be rounded.

    Attributes:
        node: it in the float graph.
        table: the integers in the quantized graph.
        form: how rows stand in it.
        grid: its integers, (groups, outputs, inputs of one output).
        targets: the floats that they stand for, in units of the integers, of the same shape.
        scales: what such a unit is worth, (groups, outputs, 1).
    """

    node: NodeProto
    table: TensorProto
    form: _Form
    grid: Floats
    targets: Floats
    scales: Floats

    @property
    def ends(self) -> tuple[float, float]:
        """Return the integers that may be used; fewer than the dtype's in a reduced range."""
        least, greatest = float(self.grid.min()), float(self.grid.max())
        if self.table.data_type == TensorProto.UINT8:
            return least, greatest
        largest = max(-least, greatest)
        return -largest, largest

    def store(self, grid: Floats) -> None:
        """Write other integers into the quantized graph."""
        dtype = helper.tensor_dtype_to_np_dtype(self.table.data_type)
        values = np.ascontiguousarray(self.form.table(grid)).astype(dtype)
        self.table.CopyFrom(numpy_helper.from_array(values, self.table.name))

    def cost(self, grid: Floats, moments: Floats) -> float:
        """Return the squared error of the outputs, over the inputs that the moments sum up."""
        errors = (grid - self.targets) * self.scales
        return float(((errors @ moments) * errors).sum())


def _layers(float_model: ModelProto, quantized: ModelProto) -> Iterator[_Layer]:
    """Yield the layers of both graphs that can be rounded, in the order of the quantized one."""
    tables = {each.name: each for each in quantized.graph.initializer}
    weights = {each.name: each for each in float_model.graph.initializer}
    makers = {name: node for node in quantized.graph.node for name in node.output}
    readers = Counter(name for node in all_nodes(quantized.graph) for name in node.input)
    partners = {(node.op_type, node.name): node for node in float_model.graph.node}
    for node in quantized.graph.node:
        partner = partners.get((node.op_type, node.name))
        if node.op_type not in LAYERS or partner is None:
            continue
        stored, weight = _stored(node.input[1], makers), weights.get(partner.input[1])
        if stored is None or weight is None:
            continue
        if readers[node.input[1]] != 1 or readers[stored.integers] != 1:
            continue
        layer = _read(partner, stored, weight, tables)
        if layer is not None:
            yield layer


@dataclass(frozen=True)
class _Stored:
    """Names of the constants that a layer's weights are made of, and the axis of the scales."""

    integers: str
    scale: str
    zero: str = ""
    axis: int = 1


def _stored(weight: str, makers: Mapping[str, NodeProto]) -> _Stored | None:
    """Return what makes floats of integers: DequantizeLinear, or what `store` writes."""
    node = makers.get(weight)
    if node is not None and node.op_type == "DequantizeLinear":
        zero = node.input[2] if len(node.input) > 2 else ""
        axes = [each.i for each in node.attribute if each.name == "axis"]
        return _Stored(node.input[0], node.input[1], zero, *axes)
    if node is not None and node.op_type == "Mul" and weight.endswith(STORED_SUFFIX):
        return _Stored(makers[node.input[0]].input[0], node.input[1])
    return None


def _read(
    node: NodeProto, stored: _Stored, weight: TensorProto, tables: Mapping[str, TensorProto]
) -> _Layer | None:
    """Return a layer, or None where its weights are no matrix with one scale per output."""
    table, scale = tables.get(stored.integers), tables.get(stored.scale)
    zero = tables.get(stored.zero)
    if table is None or scale is None or table.data_type not in INTEGERS:
        return None
    form = _form(node, stored.axis, tuple(table.dims))
    if form is None:
        return None
    steps = form.rows(numpy_helper.to_array(scale))
    if (steps != steps[..., :1]).any():
        return None
    targets = form.rows(numpy_helper.to_array(weight)) / steps
    if zero is not None:
        targets += form.rows(numpy_helper.to_array(zero))
    grid = form.rows(numpy_helper.to_array(table))
    return _Layer(node, table, form, grid, targets, steps[..., :1])


def _form(node: NodeProto, axis: int, shape: tuple[int, ...]) -> _Form | None:
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    is_product = node.op_type != "Conv"
    if given.get("transA", 0) or (is_product and len(shape) != 2):
        return None
    is_turned = is_product and not given.get("transB", 0)
    return _Form(shape, given.get("group", 1), is_turned, axis % len(shape))


def _parts(layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    """Yield the layers, as many at a time as memory allows for their second moments."""
    part: list[_Layer] = []
    left = MOST_BYTES
    for layer in layers:
        groups, _, inputs = layer.grid.shape
        size = 8 * groups * inputs**2
        if part and size > left:
            yield part
            part, left = [], MOST_BYTES
        part.append(layer)
        left -= size
    if part:
        yield part


def _moments(
    model: ModelProto, layers: Sequence[_Layer], feeds: Sequence[Feeds], *, seed: int
) -> dict[str, Floats]:
    """Return by layer the sum of x x^T over inputs seen, float64 (groups, inputs, inputs)."""
    probe = Probe(model, list(dict.fromkeys(layer.node.input[0] for layer in layers)))
    sums: dict[str, Floats] = {}
    most = -(-ROWS // len(feeds))
    for index, each in enumerate(feeds):
        values = dict(probe.run(each))
        for layer in layers:
            name, source = layer.node.name, values[layer.node.input[0]]
            kernel = layer.form.shape[2:]
            rows = input_rows(layer.node, source, kernel, most=most, seed=(seed, index))
            exact = rows.astype(np.float64)
            sums[name] = sums.get(name, 0.0) + exact.transpose(0, 2, 1) @ exact
    return sums


def _round(layer: _Layer, moments: Floats) -> tuple[Floats, Rounded]:
    """Return the better integers of one layer, and what it gained."""
    inputs = moments.shape[-1]
    mean = np.trace(moments, axis1=1, axis2=2) / inputs
    damping = np.maximum(DAMPING * mean, np.finfo(np.float32).tiny)
    damped = moments + damping[:, np.newaxis, np.newaxis] * np.eye(inputs)
    grid = layer.grid.copy()
    low = np.maximum(layer.grid - 1, layer.ends[0])
    high = np.minimum(layer.grid + 1, layer.ends[1])
    gradient = (grid - layer.targets) @ damped
    for _ in range(SWEEPS):
        before = grid.copy()
        _sweep(grid, gradient, damped, low, high)
        if np.array_equal(grid, before):
            break
    costs = [layer.cost(each, moments) for each in (layer.grid, grid)]
    moved = int(np.count_nonzero(grid != layer.grid))
    return grid, Rounded(moved, grid.size, costs[1] / costs[0] if costs[0] else 1.0)


def _sweep(grid: Floats, gradient: Floats, moments: Floats, low: Floats, high: Floats) -> None:
    """Set every weight to the best of its integers, given all others, in place.

    The gradient of what lies outside a block is brought up to date once for the whole block: one
    product of matrices instead of many passes over memory.
    """
    for start in range(0, grid.shape[-1], BLOCK):
        block = slice(start, start + BLOCK)
        within, slope = moments[:, block, block], gradient[..., block].copy()
        before = grid[..., block].copy()
        for at in range(within.shape[-1]):
            column = (..., start + at)
            best = grid[column] - slope[..., at] / within[:, at, at, np.newaxis]
            new = np.clip(np.rint(best), low[column], high[column])
            step = new - grid[column]
            slope += step[..., np.newaxis] * within[:, np.newaxis, at, :]
            grid[column] = new
        gradient += (grid[..., block] - before) @ moments[:, block, :]
