"""What TensorRT's ONNX parser takes, operator by operator, as its version 11 (RTX 1.7) answers.

Every rule was found by asking the parser itself: tests/passes/test_tensorrt_rules.py asks it again
about the node tests of the ONNX package and about a corpus of layers, wherever it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from ..recurrent.constants import Constants

__all__ = ["Look", "Objection", "object_to"]


@dataclass(frozen=True)
class Objection:
    """Why TensorRT would refuse a node, what helps, and who refuses: its parser or its builder."""

    reason: str
    help: str
    stage: Literal["parser", "builder"] = "parser"


@dataclass(frozen=True)
class Look:
    """A node and what is known of the graph around it.

    Attributes:
        node: at hand.
        constants: values that are the same at every run.
        dtypes: ONNX element types by tensor.
        shapes: sizes by tensor; None is an axis that is not known.
        inputs: names of the graph's inputs.
        attributes: of the node.
    """

    node: NodeProto
    constants: Constants
    dtypes: Mapping[str, int]
    shapes: Mapping[str, tuple[int | None, ...]]
    inputs: frozenset[str]
    attributes: Mapping[str, Any]

    def value(self, index: int) -> NDArray[Any] | None:
        """Return an input's constant value, or None."""
        return self.constants.get(self.name(index))

    def name(self, index: int) -> str:
        """Return an input's name; empty where it is not given."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def is_open(self, index: int) -> bool:
        """Whether an input is given and known only at run time."""
        return bool(self.name(index)) and self.value(index) is None

    def dtype(self, index: int) -> int:
        """Return an input's element type; 0 where it is not known."""
        return self.dtypes.get(self.name(index), 0)

    def text(self, name: str, default: str) -> str:
        """Return an attribute that is a string."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)


Rule = Callable[[Look], Objection | None]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
KNOWN_TYPES = frozenset(
    {
        *FLOATS,
        *(TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1, TensorProto.INT4),
        *(TensorProto.INT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL),
        TensorProto.UINT8,
    }
)
INTEGERS = (
    *("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
)
UNSUPPORTED = frozenset(
    {
        *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot"),
        *("BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "Compress"),
        *("ConcatFromSequence", "CumProd", "DFT", "DeformConv", "Det", "ImageDecoder"),
        *("MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial"),
        *("NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement"),
        *("RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
        *("SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss"),
        *("SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU"),
        *("TfIdfVectorizer", "Unique"),
    }
)
PLUGINS = frozenset({"CausalConvWithState", "LinearAttention", "NonZero", "RoiAlign"})
NOT_BUILT: Mapping[str, str] = {
    "Attention": "export with opset 22 or older, which writes MatMul and Softmax",
    "NonMaxSuppression": "pick the boxes outside the engine",
}
SMALL_TYPES = {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1, TensorProto.INT4}
ONE_OUTPUT = frozenset({"Attention", "LayerNormalization", "MaxPool"})
# Operators and those of their inputs that the parser wants when it builds.
BUILD_TIME: Mapping[str, tuple[int, ...]] = {
    **{f"Reduce{kind}": (1,) for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min")},
    **{f"Reduce{kind}": (1,) for kind in ("Prod", "Sum", "SumSquare")},
    "Dropout": (2,),
    "OneHot": (1,),
    "STFT": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
RESIZE_MODES = (
    *("align_corners", "asymmetric", "half_pixel", "half_pixel_symmetric"),
    *("pytorch_half_pixel", "tf_half_pixel_for_nn"),
)
NO_UINT8 = frozenset(
    {
        *("Add", "Clip", "Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max"),
        *("MaxPool", "Min", "Mod", "Mul", "ReduceMax", "ReduceMin", "Sub"),
    }
)
QUANTIZE_SO = "export the FP32 model with --engine trt --precision int8"
FOLD = "`quantize` and `export` fold what is constant; fix the shapes that it depends on"


def object_to(look: Look) -> Objection | None:
    """Return the first objection of TensorRT to a node, or None."""
    return next(filter(None, (rule(look) for rule in RULES)), None)


def _domain(look: Look) -> Objection | None:
    if look.node.domain in ("", "ai.onnx"):
        return None
    return Objection(
        f"the operators of {look.node.domain} are unknown to it",
        QUANTIZE_SO
        if look.node.op_type.startswith(("QLinear", "DynamicQuantize", "QGemm", "MatMulInteger"))
        else "export with ONNX's own operators, or bring a plugin",
    )


def _operator(look: Look) -> Objection | None:
    op = look.node.op_type
    if op in INTEGERS:
        return Objection("integer operators must be written as Q/DQ", QUANTIZE_SO)
    if op in UNSUPPORTED:
        return Objection("it has no such operator", "compute this part outside the engine")
    if op in PLUGINS:
        return Objection(
            "the operator is a plugin that TensorRT-RTX lacks",
            "use TensorRT itself, or compute this part outside the engine",
        )
    return None


def _types(look: Look) -> Objection | None:
    for name in (*look.node.input, *look.node.output):
        dtype = look.dtypes.get(name, 0)
        if dtype and dtype not in KNOWN_TYPES:
            kind = TensorProto.DataType.Name(dtype).lower()
            return Objection(
                f"it knows no {kind} ({name})", "cast to int32, int64 or float before the export"
            )
    wanted = look.attributes.get("to") or look.attributes.get("output_dtype")
    if isinstance(wanted, int) and wanted and wanted not in KNOWN_TYPES:
        kind = TensorProto.DataType.Name(wanted).lower()
        return Objection(f"it knows no {kind}", "cast to another type")
    if look.node.op_type in NO_UINT8 and TensorProto.UINT8 in (look.dtype(0), look.dtype(1)):
        return Objection("it does not compute on uint8", "cast to int32 or float first")
    return None


def _outputs(look: Look) -> Objection | None:
    if look.node.op_type not in ONE_OUTPUT:
        return None
    if any(look.node.output[1:]):
        return Objection("only its first output may be asked for", "drop the others")
    return None


def _build_time(look: Look) -> Objection | None:
    for index in BUILD_TIME.get(look.node.op_type, ()):
        if look.is_open(index):
            return Objection(f"{look.name(index)} must be constant", FOLD)
    return None


def _pooling(look: Look) -> Objection | None:
    op = look.node.op_type
    if op not in ("AveragePool", "LpPool", "MaxPool"):
        return None
    if any(each != 1 for each in look.attributes.get("dilations", ())):
        return Objection("it pools without dilations", "pool with Slices and Max instead")
    if op == "LpPool" and look.attributes.get("p", 2) not in (1, 2):
        return Objection("p must be 1 or 2", "write it as Pow and AveragePool")
    return None


def _training(look: Look) -> Objection | None:
    if look.node.op_type == "BatchNormalization" and look.attributes.get("training_mode"):
        return Objection("it does not train", "export the model in evaluation mode")
    return None


def _resize(look: Look) -> Objection | None:
    if look.node.op_type != "Resize":
        return None
    if look.is_open(2) and not look.name(3):
        return Objection(f"the scales {look.name(2)} must be constant", FOLD)
    if look.text("coordinate_transformation_mode", "half_pixel") not in RESIZE_MODES:
        return Objection("of these coordinates it knows nothing", f"use {RESIZE_MODES[2]}")
    if look.attributes.get("antialias"):
        return Objection("it has no antialiasing", "blur with a Conv before")
    if look.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return Objection("it only stretches", "give the sizes as they are to be")
    axes = look.attributes.get("axes")
    rank = len(look.shapes.get(look.name(0), ()))
    if axes and look.name(2) and list(axes) != list(range(rank)):
        return Objection("scales must be given for all axes", "leave `axes` out")
    return None


def _scatter(look: Look) -> Objection | None:
    if look.node.op_type not in ("ScatterElements", "ScatterND"):
        return None
    if look.text("reduction", "none") != "none":
        return Objection("it scatters without a reduction", "write the sum as a MatMul of one-hots")
    return None


def _attention(look: Look) -> Objection | None:
    if look.node.op_type != "Attention":
        return None
    if look.attributes.get("softcap"):
        return Objection("it has no softcap", "write attention as MatMul and Softmax")
    if look.attributes.get("softmax_precision"):
        return Objection("the softmax has the precision of its inputs", "leave it out")
    if look.attributes.get("is_causal") and look.name(3):
        return Objection(
            "a mask and is_causal exclude each other", "add the causal part to the mask"
        )
    key, value = (look.shapes.get(look.name(index), ()) for index in (1, 2))
    if key and value and None not in (key[-1], value[-1]) and key[-1] != value[-1]:
        return Objection("keys and values must be equally wide", "pad the values")
    return None


def _mod(look: Look) -> Objection | None:
    if look.node.op_type != "Mod" or look.attributes.get("fmod"):
        return None
    if look.dtype(0) in (*FLOATS, TensorProto.INT8):
        return Objection("Mod of these types needs fmod=1", "set fmod where signs agree")
    return None


def _elementwise(look: Look) -> Objection | None:
    op, dtype = look.node.op_type, look.dtype(0)
    if op == "Clip" and dtype == TensorProto.INT8:
        return Objection("it clips no int8", "clip before quantizing")
    if op == "Celu" and dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return Objection("Celu is of float32 alone", "cast around it, or use Elu")
    return None


def _tensor_scatter(look: Look) -> Objection | None:
    if look.node.op_type != "TensorScatter":
        return None
    if look.text("mode", "linear") != "linear":
        return Objection("the cache must be linear", "use mode linear")
    if len(look.shapes.get(look.name(0), ())) not in (0, 4):
        return Objection("the cache must have four axes", "add an axis of 1")
    return None


def _range(look: Look) -> Objection | None:
    if look.node.op_type != "Range" or not look.is_open(0):
        return None
    if look.dtype(0) in FLOATS:
        return Objection("a Range of floats must be constant", "make it of integers and cast")
    return None


def _borders(look: Look) -> Objection | None:
    """Quantize- and DequantizeLinear: int8 (or FP8, FP4, int4), zero point 0, constant scales."""
    node = look.node
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    scale, zero = look.value(1), look.value(2)
    if scale is not None and not (np.isfinite(scale).all() and (scale > 0).all()):
        return Objection("a scale must be positive and finite", "calibrate on other feeds")
    if zero is not None and np.any(zero != 0):
        return Objection("a zero point must be 0", QUANTIZE_SO)
    if node.op_type == "DequantizeLinear" and look.dtype(0) == TensorProto.INT32:
        return Objection("it dequantizes no int32", QUANTIZE_SO)
    if look.name(0) in look.inputs and look.dtype(0) == TensorProto.UINT8:
        return Objection("an input of uint8 can only be cast", "let the input be int8, or cast it")
    return None


def _branches(look: Look) -> Objection | None:
    """Branches of an If that is decided at run time must give outputs of one rank."""
    if look.node.op_type != "If" or not look.is_open(0):
        return None
    graphs = [look.attributes[key] for key in ("then_branch", "else_branch")]
    for pair in zip(*(graph.output for graph in graphs), strict=False):
        ranks = {len(look.shapes[each.name]) for each in pair if each.name in look.shapes}
        if len(ranks) > 1:
            return Objection(
                f"its branches give {pair[0].name} {min(ranks)} and {max(ranks)} axes",
                "fix the sizes that the condition rests on, so that it can be folded",
                stage="builder",
            )
    return None


def _building(look: Look) -> Objection | None:
    """Return what the parser takes and the builder refuses."""
    op, wanted = look.node.op_type, look.attributes.get("to", 0)
    if op in ("QuantizeLinear", "DequantizeLinear") and look.is_open(2):
        return Objection("a zero point must be constant", FOLD, stage="builder")
    if op in NOT_BUILT:
        return Objection(
            "TensorRT-RTX parses it and cannot build it", NOT_BUILT[op], stage="builder"
        )
    if op in ("Cast", "CastLike") and {wanted, look.dtype(0), look.dtype(1)} & SMALL_TYPES:
        return Objection("8- and 4-bit types need Q/DQ, not a cast", QUANTIZE_SO, stage="builder")
    return None


RULES: tuple[Rule, ...] = (
    *(_domain, _operator, _borders, _types, _outputs, _build_time, _pooling, _training),
    *(_resize, _scatter, _tensor_scatter, _attention, _elementwise, _mod, _range),
    *(_branches, _building),
)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
