"""Which INT8 scheme fits which processor: one table, with the reason for each row.

The product at the heart of INT8 differs from one instruction set to the next. What saturates, and
which of signed and unsigned has a kernel, decides the dtypes; so a file made for one processor may
be slower, or give other numbers, on the next one.

Rows with `measured` were run: AVX2 and AVX-512 VNNI. The others rest on the instructions' own
definitions, on the kernels that ONNX Runtime 1.32 picks for them, and for TensorRT on what its
parser accepts and refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["SCHEMES", "Scheme", "scheme_for"]

Dtype = Literal["uint8", "int8"]

# Operators with an integer kernel on ONNX Runtime's CPU provider, or that hand integers through.
ON_THE_CPU = (
    *("Add", "ArgMax", "AveragePool", "Concat", "Conv", "Gather", "Gemm", "GlobalAveragePool"),
    *("LSTM", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Reshape", "Resize", "Sigmoid", "Softmax"),
    *("Split", "Transpose", "Where"),
)
ON_TENSORRT = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ARM_MACHINES = ("aarch64", "arm64", "armv7l", "armv8l")
DOT_PRODUCT = frozenset({"asimddp", "dotprod"})
VNNI = frozenset({"avx512_vnni", "avx512vnni", "avx_vnni"})


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized for one kind of processor.

    Attributes:
        name: the key in `SCHEMES`.
        told: the instruction set, in words.
        activations: dtype of activations, one scale per tensor.
        is_symmetric: whether activations have zero point 0; weights always do.
        weight_bits: bits that weights use of their eight; 7: or as many as pairs allow.
        reason: why this and nothing else.
        operators: ONNX operators that have integer kernels there, LSTM with ranges measured at
            run time.
        weights: dtype of weights.
        per_channel: one scale per output channel of a weight.
        measured: whether this row was run on such a processor.
    """

    name: str
    told: str
    activations: Dtype
    is_symmetric: bool
    weight_bits: Literal[7, 8]
    reason: str
    operators: tuple[str, ...] = ON_THE_CPU
    weights: Dtype = "int8"
    per_channel: bool = True
    measured: bool = False

    @property
    def reduces_range(self) -> bool:
        """Whether weights are kept within 7 bits."""
        return self.weight_bits == 7

    @property
    def settings(self) -> dict[str, object]:
        """Settings of the quantize pass that make this scheme."""
        return {
            "activations": self.activations,
            "weights": self.weights,
            "per_channel": self.per_channel,
            "reduce_range": self.reduces_range,
        }


_TABLE = (
    Scheme(
        "avx2",
        "x86 with AVX2, without VNNI",
        "uint8",
        False,
        7,
        "VPMADDUBSW adds two u8 x s8 products in int16, which saturates from 8-bit weights; scales"
        " per channel that keep every such pair within int16 cost less than 7 bits do",
        measured=True,
    ),
    Scheme(
        "avx512",
        "x86 with AVX-512, without VNNI",
        "uint8",
        False,
        7,
        "the same VPMADDUBSW, 512 bits wide, with the same saturation",
    ),
    Scheme(
        "vnni",
        "x86 with AVX-VNNI or AVX-512 VNNI",
        "uint8",
        False,
        8,
        "VPDPBUSD adds four u8 x s8 products in int32, so all 8 bits of a weight can be used",
        measured=True,
    ),
    Scheme(
        "amx",
        "x86 with AMX",
        "uint8",
        False,
        8,
        "TDPBUSD multiplies tiles of u8 x s8 and adds in int32, so nothing saturates",
    ),
    Scheme(
        "arm-dotprod",
        "ARM with dot products (ARMv8.2)",
        "int8",
        True,
        8,
        "SDOT adds four s8 x s8 products in int32; ONNX Runtime's own convolution kernels there"
        " want int8 on both sides",
    ),
    Scheme(
        "arm-i8mm",
        "ARM with matrix products (i8mm)",
        "int8",
        True,
        8,
        "SMMLA multiplies s8 x s8 blocks and adds in int32",
    ),
    Scheme(
        "arm",
        "ARM without dot products",
        "int8",
        True,
        8,
        "SMULL and SMLAL add two s8 x s8 products in int16, which holds them while no weight is"
        " -128; symmetric weights end at -127",
    ),
    Scheme(
        "tensorrt",
        "NVIDIA GPU with TensorRT",
        "int8",
        True,
        8,
        "TensorRT takes int8 with zero point 0 on both sides and refuses uint8 and other zero"
        " points",
        operators=ON_TENSORRT,
    ),
)
SCHEMES: Mapping[str, Scheme] = {each.name: each for each in _TABLE}


def scheme_for(flags: frozenset[str], machine: str) -> Scheme:
    """Return the scheme that fits a processor.

    Args:
        flags: of the instruction sets, in lower case, as Linux or macOS print them; empty where
            they are not known, which takes the scheme that is right on every processor of its kind.
        machine: architecture as `platform.machine()` names it.
    """
    if machine.lower() in ARM_MACHINES:
        return SCHEMES[_arm_name(flags)]
    return SCHEMES[_x86_name(flags)]


def _arm_name(flags: frozenset[str]) -> str:
    if "i8mm" in flags:
        return "arm-i8mm"
    return "arm-dotprod" if flags & DOT_PRODUCT else "arm"


def _x86_name(flags: frozenset[str]) -> str:
    if "amx_int8" in flags:
        return "amx"
    if flags & VNNI:
        return "vnni"
    return "avx512" if "avx512f" in flags else "avx2"
