"""Graphs of activations, written operator by operator."""

from collections import Counter

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession

CHANNELS = 4


class Net:
    """Writes a graph from x to the output of its last node, operator by operator."""

    def __init__(self, *, opset=17, shape=(2, CHANNELS, 5, 3), seed=0, kind=TensorProto.FLOAT):
        self.opset, self.shape, self.kind = opset, shape, kind
        self.rng = np.random.default_rng(seed)
        self.nodes, self.tables = [], {}

    def constant(self, value, dtype=np.float32):
        name = f"c{len(self.tables)}"
        self.tables[name] = np.asarray(value, dtype)
        return name

    def add(self, op, *inputs, **attributes):
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], name=output, **attributes))
        return output

    def conv(self, x):
        weights = self.rng.standard_normal((CHANNELS, CHANNELS, 1, 1))
        return self.add("Conv", x, weights, self.rng.standard_normal(CHANNELS))

    def model(self):
        last = self.nodes[-1].output[0]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", self.kind, self.shape)],
            [helper.make_tensor_value_info(last, TensorProto.UNDEFINED, None)],
            [numpy_helper.from_array(table, name) for name, table in self.tables.items()],
        )
        imports = [helper.make_opsetid("", self.opset)]
        made = helper.make_model(graph, opset_imports=imports, ir_version=8)
        made.graph.output[0].type.tensor_type.elem_type = self.kind
        return made

    def feeds(self, sizes=(2, CHANNELS, 5, 3)):
        """Return values that reach far beyond both ends of a HardSwish's ramp."""
        return {"x": (4 * self.rng.standard_normal(sizes)).astype(np.float32)}


def clip(net, x, low, high):
    return net.add("Clip", x, low, high)


def run(model, feeds):
    (output,) = OrtSession(Artifact("onnx", model), threads=1).run(feeds).values()
    return output


def types(model):
    return dict(Counter(node.op_type for node in model.graph.node))
