"""ConvTransposes of whole numbers, alone and in small graphs, and what they must compute."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import sqnr_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes import Context
from aigc_compress.passes.transposed import LowerConfig, LowerPass

OPSET = 18


def whole_numbers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float32)


def scattered(x, weight, bias, geometry):
    """Return the transposed convolution in float64, every product scattered to where it belongs."""
    axes, group = geometry.axes, geometry.group
    full = [
        axis.stride * (size - 1) + axis.reach for axis, size in zip(axes, x.shape[2:], strict=True)
    ]
    room = [
        max(0, -axis.begin) + size + max(0, -axis.end) + axis.output_padding
        for axis, size in zip(axes, full, strict=True)
    ]
    y = np.zeros((x.shape[0], geometry.outputs, *room))
    parts = np.split(x.astype(np.float64), group, axis=1), np.split(weight, group, axis=0)
    for place in np.ndindex(*x.shape[2:]):
        made = [np.tensordot(a[:, :, *place], w, 1) for a, w in zip(*parts, strict=True)]
        made = np.concatenate(made, axis=1)
        for tap in np.ndindex(*weight.shape[2:]):
            where = [
                axis.stride * i + axis.dilation * t + max(0, -axis.begin)
                for axis, i, t in zip(axes, place, tap, strict=True)
            ]
            y[:, :, *where] += made[:, :, *tap]
    cuts = [slice(max(0, axis.begin), None) for axis in axes]
    ends = [
        slice(0, axis.stride * size + axis.growth)
        for axis, size in zip(axes, x.shape[2:], strict=True)
    ]
    y = y[:, :, *cuts][:, :, *ends]
    return y if bias is None else y + bias.reshape(-1, *[1] * len(axes))


def model_of(nodes, constants, x_shape, *, opset=OPSET, extra_outputs=(), extra_inputs=()):
    def face(*names):
        shapes = {"x": x_shape} | {name: table.shape for name, table in constants.items()}
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.get(name))
            for name in names
        ]

    graph = helper.make_graph(
        nodes,
        "g",
        face("x", *extra_inputs),
        face("y", *extra_outputs),
        [numpy_helper.from_array(each, name) for name, each in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def run(model, x):
    return OrtSession(Artifact("onnx", model), threads=1).run({"x": x})["y"]


def types(model):
    return [node.op_type for node in model.graph.node]


def up(source, target, weight="w1", *rest, **attributes):
    settings = {"strides": [2, 2], "pads": [1] * 4} | attributes
    return helper.make_node("ConvTranspose", [source, weight, *rest], [target], **settings)


def two_layers(**changes):
    """Return a graph of two ConvTransposes of one kind with LeakyRelu between, and feeds."""
    nodes = [
        up("x", "h", "w1", "b1"),
        helper.make_node("LeakyRelu", ["h"], ["a"], alpha=0.25),
        helper.make_node("AveragePool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        up("p", "y", "w2", "b1"),
    ]
    tables = {"w1": whole_numbers(4, 4, 4, 4), "w2": whole_numbers(4, 4, 4, 4, seed=3)}
    tables["b1"] = whole_numbers(4, seed=4)
    model = model_of(nodes, tables, ["N", 4, 6, 6], **changes)
    feeds = tuple({"x": whole_numbers(n, 4, 6, 6, seed=n)} for n in (1, 3))
    return Artifact("onnx", model), feeds


def lower(artifact, feeds, meter=None, **config):
    before = artifact.payload.SerializeToString()
    result = LowerPass().run(artifact, LowerConfig(**config), Context(feeds, meter=meter))
    assert artifact.payload.SerializeToString() == before
    onnx.checker.check_model(result.payload, full_check=True)
    for each in feeds:
        wanted, found = (OrtSession(one, threads=1).run(each) for one in (artifact, result))
        for name in wanted:
            assert sqnr_db(wanted[name], found[name]) >= 80
    return result.payload, result.history[-1].numbers["layers"]
