"""Reshapes whose shape is computed at run time from sizes that need no computing.

PyTorch's exporter puts ten nodes behind every LSTM and GRU: Transpose, Shape, four Slices, Mul,
Concat and Reshape, which together drop an axis of size 1. In a model called step by step they take
about as long as the products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from .shapes import without_shapes

__all__ = ["fix_reshapes"]

POINTWISE = ("Cast", "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Tanh")
PASSING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")  # of vectors and single numbers
COMPUTED = -1
COPIED = 0
SQUEEZE_WITH_INPUT = 13  # the opset that made axes an input


@dataclass(frozen=True)
class _Size:
    """A size that is known at run time alone: that of a tensor along an axis."""

    tensor: str
    axis: int


Element = int | _Size | None  # None: something else
Vector = list[Element]


def fix_reshapes(model: ModelProto) -> tuple[ModelProto, int]:
    """Give Reshapes of the main graph a constant shape, or make Squeezes of them; return how many.

    Sizes that stay dynamic are copied from the input (0), and one at most is computed (-1).
    """
    fixed = ModelProto()
    fixed.CopyFrom(model)
    sizes = _Sizes(fixed)
    taken = {name for node in fixed.graph.node for name in node.output}
    count = 0
    for node in fixed.graph.node:
        if node.op_type != "Reshape" or node.input[1] in sizes.constants or _allows_zero(node):
            continue
        target = sizes.vector(node.input[1])
        if target is None:
            continue
        if (squeezed := sizes.squeezed(node.input[0], target)) is not None:
            source, axes = squeezed
            node.op_type = "Squeeze"
            node.input[0] = source
            del node.attribute[:]
            values = axes
        elif (shape := sizes.shape(node.input[0], target)) is not None:
            values = shape
        else:
            continue
        node.input[1] = f"{node.output[0]}_shape"
        while node.input[1] in taken:
            node.input[1] += "_"
        constant = numpy_helper.from_array(np.array(values, np.int64), node.input[1])
        fixed.graph.initializer.append(constant)
        count += 1
    return fixed, count


def _allows_zero(node: NodeProto) -> bool:
    return any(each.name == "allowzero" and each.i for each in node.attribute)


class _Sizes:
    """Follows sizes of tensors through the operators that work on shapes."""

    def __init__(self, model: ModelProto) -> None:
        self.constants = {each.name: each for each in model.graph.initializer}
        self._opset = max((o.version for o in model.opset_import if not o.domain), default=1)
        self._makers = {name: node for node in model.graph.node for name in node.output if name}
        self._shapes = _inferred_shapes(model)

    def vector(self, name: str) -> Vector | None:
        """Return the numbers in a vector, or the number in a scalar; None where nothing is known.

        The graph has no cycles, and shapes are made in few steps.
        """
        if name in self.constants:
            array = numpy_helper.to_array(self.constants[name])
            is_list = array.dtype.kind in "iu" and array.ndim <= 1
            return [int(value) for value in array.ravel()] if is_list else None
        node = self._makers.get(name)
        handler = _HANDLERS.get(node.op_type) if node is not None else None
        return handler(self, node) if handler is not None and node is not None else None

    def sizes_of(self, name: str) -> Vector | None:
        """Return the sizes of a tensor; None where its rank is not known."""
        shape = self._shapes.get(name)
        return None if shape is None else [self._size(name, axis) for axis in range(len(shape))]

    def shape(self, name: str, target: Vector) -> list[int] | None:
        """Return the constant shape that makes a Reshape give the target."""
        given = self.sizes_of(name) or []
        shape = []
        for place, each in enumerate(target):
            if isinstance(each, int):
                shape.append(each)
            elif each is not None and place < len(given) and given[place] == each:
                shape.append(COPIED)
            else:
                shape.append(COMPUTED)
        return shape if shape.count(COMPUTED) <= 1 else None

    def squeezed(self, name: str, target: Vector) -> tuple[str, list[int]] | None:
        """Return a tensor and the axes to drop of it that give the target; None where none does."""
        if self._opset < SQUEEZE_WITH_INPUT or None in target:
            return None
        sources = [name]
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "Transpose":
            sources.insert(0, maker.input[0])
        for source in sources:
            sizes = self.sizes_of(source)
            axes = [axis for axis, size in enumerate(sizes or ()) if size == 1]
            kept = [size for size in sizes or () if size != 1]
            if axes and kept == target:
                return source, axes
        return None

    def _size(self, name: str, axis: int) -> Element:
        shape = self._shapes.get(name)
        known = shape[axis] if shape is not None and axis < len(shape) else None
        if isinstance(known, int):
            return known
        node = self._makers.get(name)
        if node is not None and node.op_type == "Transpose":
            order = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
            rank = len(shape) if shape is not None else 0
            return self._size(node.input[0], order[axis] if order else rank - 1 - axis)
        if node is not None and node.op_type in POINTWISE:
            return self._size(node.input[0], axis)
        return _Size(name, axis)


def _inferred_shapes(model: ModelProto) -> Mapping[str, list[int | None]]:
    """Return sizes by tensor; names of axes are not believed: some models call all of them `?`."""
    inferred = onnx.shape_inference.infer_shapes(without_shapes(model), data_prop=True).graph
    return {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.HasField("shape")
    }


def _shape(sizes: _Sizes, node: NodeProto) -> Vector | None:
    found = sizes.sizes_of(node.input[0])
    ends = {each.name: each.i for each in node.attribute}
    return None if found is None else found[slice(ends.get("start", 0), ends.get("end"))]


def _gather(sizes: _Sizes, node: NodeProto) -> Vector | None:
    values, places = (sizes.vector(name) for name in node.input)
    if values is None or places is None:
        return None
    chosen = [
        place for place in places if isinstance(place, int) and -len(values) <= place < len(values)
    ]
    return [values[place] for place in chosen] if len(chosen) == len(places) else None


def _slice(sizes: _Sizes, node: NodeProto) -> Vector | None:
    values, *limits = (sizes.vector(name) for name in node.input if name)
    steps = limits[3] if len(limits) > 3 else [1]
    ends = [limits[0], limits[1], steps]
    if values is None or not all(each and isinstance(each[0], int) for each in ends):
        return None
    first, last, step = (each[0] for each in ends if each)
    assert isinstance(first, int)
    assert isinstance(last, int)
    return values[slice(first, last, step if isinstance(step, int) else 1)]


def _concat(sizes: _Sizes, node: NodeProto) -> Vector | None:
    whole: Vector = []
    for name in node.input:
        part = sizes.vector(name)
        if part is None:
            return None
        whole += part
    return whole


def _same(sizes: _Sizes, node: NodeProto) -> Vector | None:
    return sizes.vector(node.input[0])


def _product(sizes: _Sizes, node: NodeProto) -> Vector | None:
    left, right = (sizes.vector(name) for name in node.input)
    if left is None or right is None:
        return None
    if len(left) == 1 or len(right) == 1:
        longest = max(len(left), len(right))
        left, right = (each * longest if len(each) == 1 else each for each in (left, right))
    if len(left) != len(right):
        return None
    return [_times(a, b) for a, b in zip(left, right, strict=True)]


def _times(left: Element, right: Element) -> Element:
    if left == 1:
        return right
    if right == 1:
        return left
    return left * right if isinstance(left, int) and isinstance(right, int) else None


_HANDLERS: Mapping[str, Callable[[_Sizes, NodeProto], Vector | None]] = {
    "Concat": _concat,
    "Gather": _gather,
    "Mul": _product,
    "Shape": _shape,
    "Slice": _slice,
    **dict.fromkeys(PASSING, _same),
}
