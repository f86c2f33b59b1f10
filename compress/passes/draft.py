"""Write nodes and constants of a graph, one call per operator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["MICROSOFT", "Draft"]

MICROSOFT = "com.microsoft"
SIZES_ARE_AN_INPUT = 13  # the opset from which Split takes them so


class Draft:
    """Nodes and constants under construction; every name begins with the same prefix.

    Attributes:
        prefix: what the names begin with.
        opset: the graph's version of ONNX's own operators.
        nodes: the operators, in order.
        constants: the initializers that they read.
    """

    def __init__(self, prefix: str, opset: int) -> None:
        self.prefix = prefix
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, array: NDArray[Any], name: str) -> str:
        """Store an array under a name of this draft, once, and return the full name."""
        full = f"{self.prefix}_{name}"
        if all(each.name != full for each in self.constants):
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), full))
        return full

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append an operator of one output and return the output's name."""
        return self.add_many(op, *inputs, outputs=1, **attributes)[0]

    def add_many(
        self, op: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Append an operator of several outputs and return their names."""
        stem = f"{self.prefix}_{op}_{len(self.nodes)}"
        names = [stem, *(f"{stem}_{index}" for index in range(1, outputs))]
        node = helper.make_node(op, inputs, names, name=stem, domain=domain, **attributes)
        self.nodes.append(node)
        return names

    def split(self, value: str, sizes: list[int], *, axis: int) -> list[str]:
        """Append a Split in the spelling of this opset and return its parts."""
        if self.opset < SIZES_ARE_AN_INPUT:
            return self.add_many("Split", value, outputs=len(sizes), axis=axis, split=sizes)
        lengths = self.constant(np.array(sizes, np.int64), f"sizes_{'_'.join(map(str, sizes))}")
        return self.add_many("Split", value, lengths, outputs=len(sizes), axis=axis)

    def rename(self, old: str, new: str) -> None:
        """Give a value another name wherever these nodes write or read it."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [new if each == old else each for each in names]

    def graph(self, inputs: dict[str, int], outputs: list[str]) -> GraphProto:
        """Return nodes and constants as the body of a loop.

        Args:
            inputs: names of float32 values and their ranks; the sizes stay open.
            outputs: names of the float32 values that the body hands back.
        """
        read = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
            for name, rank in inputs.items()
        ]
        written = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        return helper.make_graph(self.nodes, self.prefix, read, written, self.constants)
