"""A graph quantized for one engine, back on floats, so that another engine gets a form of its own.

Weights become the floats that their integers stand for. What rounds an activation becomes a Clip to
the range of its integers, since quantizers drop a Relu or Clip that the rounding does anyhow.
Ranges found at run time (DynamicQuantizeLinear, DynamicQuantizeLSTM) bound nothing, and go.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from pydantic import BaseModel, ConfigDict

from aigc_compress.artifact import Artifact, Step
from aigc_compress.errors import PassError

from .agreement import sqnr_db
from .base import Context
from .draft import MICROSOFT
from .folding import dequantized
from .graphs import free_stem
from .operators import with_node_names
from .recurrent.constants import Constants

__all__ = ["DequantizeConfig", "DequantizePass"]

FLOAT_FORMS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
LEAST_DB = 10.0  # to the integers: less means that something was misread
LSTM_INPUTS = 8  # of the float operator; scales and zero points of W and R follow them
WEIGHTS_AT = {
    **dict.fromkeys(("Conv", "ConvTranspose", "GRU", "Gemm", "LSTM"), (1, 2)),
    "MatMul": (0, 1),
}


class DequantizeConfig(BaseModel):
    """Nothing is to be set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DequantizePass:
    """Take Q/DQ, dynamically quantized and stored-as-integers graphs back to floats.

    The step's numbers tell how many nodes of each type are `gone`, and `sqnr_db`, how close the
    outputs are to those of the integers.
    """

    name = "dequantize"
    config = DequantizeConfig

    def run(self, artifact: Artifact, config: DequantizeConfig, context: Context) -> Artifact:
        """Return the graph on floats.

        Raises:
            PassError: nothing in it is quantized in a way that is known, or the floats give other
                outputs than the integers.
        """
        before: ModelProto = artifact.payload
        floats = _Floats(with_node_names(before))
        model = floats.made()
        if not floats.gone:
            raise PassError("Nothing to dequantize: the graph has no Q/DQ or dynamic operators.")
        agreement = sqnr_db(artifact, model, context)
        if agreement < LEAST_DB:
            raise PassError(f"The floats agree with the integers to {agreement:.0f} dB only.")
        numbers = {"gone": dict(floats.gone), "sqnr_db": agreement}
        step = Step(self.name, config.model_dump(), None, numbers)
        return artifact.then(model, step, stage="onnx")


class _Floats:
    """Nodes of the main graph, rewritten one by one."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        graph = model.graph
        opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 1)
        self._stem, self._count = free_stem(model), 0
        self._constants = Constants(graph, opset=opset, ir_version=model.ir_version)
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self.gone: Counter[str] = Counter()

    def made(self) -> ModelProto:
        """Return the graph on floats."""
        rules = {
            "DequantizeLinear": self._weights_or_clip,
            "DynamicQuantizeLinear": self._unscaled,
            "DynamicQuantizeLSTM": self._lstm,
        }
        graph = self._model.graph
        for node in list(graph.node):
            op = node.op_type
            rule = rules.get(op)
            if rule is not None and rule(node):
                self.gone[op] += 1
        for node in graph.node:
            for place in WEIGHTS_AT.get(node.op_type, ()):
                self._store_constant(node, place)
        import onnx_ir as ir
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        kept = ir.from_proto(self._model)
        RemoveUnusedNodesPass()(kept)
        return ir.to_proto(kept)

    def _weights_or_clip(self, node: NodeProto) -> bool:
        """DequantizeLinear: of constants their floats, of QuantizeLinear a Clip."""
        values, *border = [self._constants.get(name) for name in node.input if name]
        known = [each for each in border if each is not None]
        if len(known) < len(border):
            return False
        attributes = {each.name: each.i for each in node.attribute}
        quantizer = self._makers.get(node.input[0])
        if values is not None:
            floats = dequantized(values, *known, **attributes)
            if floats is None:
                return False
            self._replace(node, "Identity", [self._stored(floats)])
            return True
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            return False
        limits = self._limits(known, quantizer)
        if limits is None:
            return False
        ends = [np.array([[each]], limits.dtype) for each in limits]
        sides = [dequantized(end, *known) for end in ends]
        bounds = [self._stored(each.reshape(())) for each in sides if each is not None]
        self._replace(node, "Clip", [quantizer.input[0], *bounds])
        return True

    def _limits(self, border: list[NDArray[Any]], quantizer: NodeProto) -> NDArray[Any] | None:
        """Return the least and the largest integer; None where both ends have not one scale."""
        others = [self._constants.get(name) for name in quantizer.input[1:] if name]
        is_same = len(others) == len(border) and all(
            other is not None and np.array_equal(each, other)
            for each, other in zip(border, others, strict=True)
        )
        # Without a zero point the integers are uint8, unless an attribute names another type.
        is_plain = not any(
            each.name in ("output_dtype", "block_size") for each in quantizer.attribute
        )
        dtype = border[1].dtype if len(border) > 1 else np.dtype(np.uint8)
        if not (is_same and is_plain and border[0].size == 1 and dtype.kind in "iu"):
            return None
        return np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)

    def _unscaled(self, node: NodeProto) -> bool:
        """DynamicQuantizeLinear: x with a scale of 1, and products of floats behind it."""
        values, scale, zero = node.output
        products = [each for each in self._readers.get(values, ()) if each.op_type in FLOAT_FORMS]
        weights = [self._product_weights(each) for each in products]
        readers = {id(each) for name in (values, zero) for each in self._readers.get(name, ())}
        is_alone = readers == {id(each) for each in products}
        is_moved = all(list(each.input[2:3]) == [zero] for each in products)
        if not (is_alone and is_moved) or any(each is None for each in weights):
            return False
        for product, floats in zip(products, weights, strict=True):
            assert floats is not None
            stored = self._stored(floats)
            op = product.op_type
            self.gone[op] += 1
            self._replace(product, FLOAT_FORMS[op], [node.input[0], stored], keeps_attributes=True)
        one = self._stored(np.ones((), np.float32))
        for each in self._readers.get(scale, ()):
            each.input[:] = [one if name == scale else name for name in each.input]
        self._model.graph.node.remove(node)
        return True

    def _product_weights(self, node: NodeProto) -> NDArray[Any] | None:
        """Return the weights of an integer product without their zero point, unscaled, or None."""
        integers = self._constants.get(node.input[1])
        zero_name = node.input[3] if len(node.input) > 3 else ""
        zero = self._constants.get(zero_name) if zero_name else np.int8(0)
        if integers is None or zero is None:
            return None
        moved: NDArray[Any] = integers.astype(np.float32) - np.asarray(zero, np.float32)
        return moved

    def _lstm(self, node: NodeProto) -> bool:
        """DynamicQuantizeLSTM: the float one, whose weights lie as (D, 4H, K), not (D, K, 4H)."""
        borders = node.input[LSTM_INPUTS : LSTM_INPUTS + 4]
        names = (node.input[1], *borders[:2], node.input[2], *borders[2:])
        arrays = [self._constants.get(name) for name in names]
        known = [each for each in arrays if each is not None]
        if len(known) != len(names):
            return False
        inputs = list(node.input[:LSTM_INPUTS])
        for place in (1, 2):
            integers, scale, zero = known[3 * place - 3 : 3 * place]
            shape = (scale.shape[0], 1, -1)
            floats = integers.astype(np.float32) - zero.astype(np.float32).reshape(shape)
            floats = (floats * scale.reshape(shape)).transpose(0, 2, 1)
            inputs[place] = self._stored(floats)
        self._replace(node, "LSTM", inputs, keeps_attributes=True)
        return True

    def _store_constant(self, node: NodeProto, place: int) -> None:
        """Let a layer read weights that nodes make of integers, Cast and Mul, as they are made."""
        name = node.input[place] if len(node.input) > place else ""
        maker = self._makers.get(name)
        if maker is None or maker.op_type not in ("Cast", "Mul"):
            return
        value = self._constants.get(name)
        if value is not None:
            node.input[place] = self._stored(value)
            self.gone[maker.op_type] += 1

    def _replace(
        self, node: NodeProto, op: str, inputs: list[str], *, keeps_attributes: bool = False
    ) -> None:
        node.op_type = op
        if node.domain == MICROSOFT:
            node.domain = ""
        node.input[:] = inputs
        if not keeps_attributes:
            del node.attribute[:]

    def _stored(self, array: NDArray[Any]) -> str:
        self._count += 1
        name = f"{self._stem}_{self._count}"
        self._model.graph.initializer.append(numpy_helper.from_array(array.copy(), name))
        return name
