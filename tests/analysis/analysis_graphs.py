"""Small models to analyze, and rounding in numpy."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.analysis.forms import Forms
from aigc_compress.analysis.sites import find_sites
from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes import Context, QuantizeConfig

FLOAT = TensorProto.FLOAT


def model_of(nodes, inputs, outputs, **constants):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info(name, FLOAT, shape) for name, shape in inputs.items()],
        [info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def two_layers(outlier=1.0):
    """A convolution with its Relu, and one that reads a channel `outlier` times the others.

    Of 127 times the others, all gains lie on a grid of 7 bits and, but for 0.4 %, of 8.
    """
    node = helper.make_node
    gain = np.ones((1, 4, 1, 1), np.float32)
    gain[0, 0] = outlier
    quiet = normal(1, 4, 4, 3, 3)
    quiet[:, 0] = 0.0  # the loud channel carries nothing: it only wastes the range of the others
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], name="tame", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["r"], name="relu"),
        node("Mul", ["r", "gain"], ["m"], name="outlier"),
        node("Conv", ["m", "w2"], ["y"], name="wild", pads=[1, 1, 1, 1]),
    ]
    constants = {"w1": normal(0, 4, 3, 3, 3), "b1": normal(2, 4), "gain": gain, "w2": quiet}
    return model_of(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}, **constants)


def product():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["y"], name="bias"),
    ]
    constants = {"w": normal(3, 6, 5), "b": normal(4, 5)}
    return model_of(nodes, {"x": [2, 6]}, {"y": [2, 5]}, **constants)


def two_lstms():
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["h"], hidden_size=4, name="first"),
        helper.make_node("Squeeze", ["h", "axis"], ["s"], name="squeeze"),
        helper.make_node("LSTM", ["s", "v", "q"], ["y"], hidden_size=4, name="second"),
    ]
    weights = {"w": normal(5, 1, 16, 6), "r": normal(6, 1, 16, 4)}
    weights |= {"v": normal(7, 1, 16, 4), "q": normal(8, 1, 16, 4), "axis": np.array([1])}
    return model_of(nodes, {"x": [3, 2, 6]}, {"y": [3, 1, 2, 4]}, **weights)


def forms_of(model, *shape, **settings):
    feeds = tuple({"x": normal(10 + seed, *shape)} for seed in range(4))
    return Forms(model, find_sites(model), QuantizeConfig(**settings), Context(feeds[:2], feeds))


def convolutions(outlier=1.0, **settings):
    return forms_of(two_layers(outlier), 1, 3, 8, 8, **settings)


def outputs(model, feeds):
    session = OrtSession(Artifact("onnx", model), threads=1)
    return np.concatenate([session.run(each)["y"].ravel() for each in feeds])


def rounded(weight, limit=127):
    """Return per-channel symmetric INT8 weights as floats: the first axis are output channels."""
    scale = np.abs(weight).reshape(len(weight), -1).max(1) / limit
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.rint(weight / scale) * scale
