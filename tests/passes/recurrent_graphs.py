"""GRUs and LSTMs as graphs, what feeds them, and their integer arithmetic in numpy."""

import numpy as np
import onnx
from conftest import SATURATES
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession

RNG = np.random.default_rng(0)
SAFE = {"reduce_range": SATURATES}  # what is exact on this processor
LIMIT = 64 if SATURATES else 127  # of safe weights
INPUT, HIDDEN = 5, 16
DIRECTIONS = ("forward", "reverse", "bidirectional")


def uniform(*shape, scale=0.5):
    return RNG.uniform(-scale, scale, shape).astype(np.float32)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def layer_weights(gates, directions, *, bias=True):
    """Weights by input position; a scale of its own per row tests per-channel scales."""
    rows = np.exp(RNG.uniform(-2, 0, (directions, gates * HIDDEN, 1))).astype(np.float32)
    arrays = {
        1: rows * uniform(directions, gates * HIDDEN, INPUT),
        2: rows * uniform(directions, gates * HIDDEN, HIDDEN),
    }
    return arrays | ({3: uniform(directions, 2 * gates * HIDDEN)} if bias else {})


def layer_node(op, weights, *, states=(), **attributes):
    """Return the node and initializers; `states` are names of initial states."""
    inputs = ["x", *(f"p{i}" if i in weights else "" for i in range(1, 5)), *states]
    if 7 in weights:
        inputs = [*inputs, *[""] * (7 - len(inputs)), "p7"]
    outputs = ["y", "y_h", "y_c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, inputs, outputs, hidden_size=HIDDEN, name="layer", **attributes)
    return node, [numpy_helper.from_array(array, f"p{i}") for i, array in weights.items()]


def make_model(op, weights, *, states=(), opset=17, steps="T", **attributes):
    node, initializers = layer_node(op, weights, states=states, **attributes)
    directions = weights[1].shape[0]
    inputs = [value("x", [steps, "N", INPUT])]
    inputs += [value(name, [directions, "N", HIDDEN]) for name in states]
    outputs = [
        value("y", [None] * 4),
        *(value(name, [directions, "N", HIDDEN]) for name in node.output[1:]),
    ]
    return wrap([node], inputs, outputs, initializers, opset)


def wrap(nodes, inputs, outputs, initializers=(), opset=17):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model, feeds):
    onnx.checker.check_model(model)
    outputs = OrtSession(Artifact("onnx", model), threads=1).run(feeds)
    return [outputs[each.name] for each in model.graph.output]


def feeds_for(steps, batch, states=(), directions=1):
    dense = RNG.standard_normal((steps, batch, INPUT)).astype(np.float32)
    return {"x": dense} | {name: np.tanh(2 * uniform(directions, batch, HIDDEN)) for name in states}


def operators(graph):
    found = [node.op_type for node in graph.node]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += operators(attribute.g)
    return found


def relative_error(wanted, found):
    return np.linalg.norm(wanted - found) / np.linalg.norm(wanted)


# A second, plainer way: the arithmetic of integer products and of both cells in numpy.
# A second, plainer way: the arithmetic of integer products in numpy.


def integer_product(x, weight, limit=127, *, per_channel=True):
    """x (M, K) with one uint8 range times int8 weight (K, N), as 64-bit integers."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / np.float32(255))
    zero = np.rint(-low / scale)
    q = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero)
    w_scale = np.abs(weight).max(axis=0 if per_channel else None) / np.float32(limit)
    w = np.clip(np.rint(weight / w_scale), -limit, limit).astype(np.int64)
    return (q @ w) * (scale * w_scale)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
