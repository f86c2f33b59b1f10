"""The forms in which a ConvTranspose can be written with operators that have integer kernels.

All are exact: every weight stands unchanged in another kernel (see taps.py).

- plain: stride 1 is a Conv with the flipped kernel.
- zero_tap: one Conv makes all phases of a block of outputs as channels, which are then interleaved.
  Its kernel covers the taps of all phases, so each phase has some zeros.
- crop: the same with blocks that begin where this kernel is the smallest; the outputs before the
  first are made in vain and cut off.
- phases: one Conv per phase, none with a zero, then Concat.
- gemm: MatMul makes one column of taps per input, and Col2Im adds them up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from aigc_compress.passes.draft import Draft

from .convs import Convs, block_convs, cropped_convs, phase_convs, write_convs
from .gemm import write_gemm
from .geometry import Geometry
from .interleave import Spelling, faster_spelling
from .layer import Layer

__all__ = [
    "FORMS",
    "SPELLINGS",
    "EngineName",
    "FormName",
    "Precision",
    "multiplications",
    "refusal",
    "write_form",
]

Precision = Literal["float", "integer"]
FormName = Literal["plain", "zero_tap", "crop", "phases", "gemm"]
EngineName = Literal["ort", "openvino"]
# OpenVINO 2026 has a kernel for DepthToSpace, of integers too; None: what is faster, see there.
SPELLINGS: Mapping[EngineName, Spelling | None] = {"ort": None, "openvino": "depth_to_space"}
MOST_PHASES = 16
COL2IM_OPSET = 18

# Of forms with as many multiplications the first is taken where nothing tells their times.
FORMS: Mapping[FormName, Callable[[Geometry], Convs] | None] = {
    "plain": block_convs,
    "zero_tap": block_convs,
    "crop": cropped_convs,
    "phases": phase_convs,
    "gemm": None,
}


def refusal(form: FormName, geometry: Geometry, *, opset: int) -> str | None:
    """Return why a form does not apply, or None; for every geometry plain or zero_tap does."""
    if form == "gemm":
        return _gemm_refusal(geometry, opset)
    if geometry.phases == 1:
        return None if form == "plain" else "with stride 1 it is a plain Conv"
    if form == "plain":
        return f"its strides are {list(geometry.strides)}, not 1"
    if form == "crop" and _positions(cropped_convs(geometry)) == _positions(block_convs(geometry)):
        return "no crop gives a smaller kernel than zero_tap's"
    if form == "phases" and geometry.phases > MOST_PHASES:
        return f"it would be {geometry.phases} Convs; the most is {MOST_PHASES}"
    return None


def _gemm_refusal(geometry: Geometry, opset: int) -> str | None:
    if opset < COL2IM_OPSET:
        return f"Col2Im is an operator since opset {COL2IM_OPSET}; the graph is of opset {opset}"
    if min(min(axis.begin, axis.end) for axis in geometry.axes) < 0:
        return "Col2Im takes no negative pads"
    if len(geometry.axes) == 1 and geometry.axes[0].dilation > 1:
        return "ONNX Runtime 1.32 mixes channels up in Col2Im over one dilated axis"
    if any(axis.output_padding >= axis.stride for axis in geometry.axes):
        return "its output_padding is not below its stride, so Col2Im would expect more inputs"
    return None


def _positions(convs: Convs) -> int:
    return sum(math.prod(axis.positions for axis in conv) for conv in convs)


def multiplications(form: FormName | None, geometry: Geometry, sizes: Sequence[int]) -> int:
    """Return the multiplications per sample, zeros included; None stands for ConvTranspose itself.

    Args:
        form: an applicable one.
        geometry: of the layer.
        sizes: spatial sizes of its input.
    """
    pairs = geometry.inputs * geometry.outputs // geometry.group
    plan = FORMS[form] if form else None
    if plan is None:
        return pairs * math.prod(axis.kernel for axis in geometry.axes) * math.prod(sizes)
    per_block = sum(
        math.prod(len(axis.table) * axis.positions for axis in conv) for conv in plan(geometry)
    )
    blocks = [size + axis.extra_blocks for size, axis in zip(sizes, plan(geometry)[0], strict=True)]
    return pairs * per_block * math.prod(blocks)


def write_form(
    form: FormName,
    layer: Layer,
    *,
    prefix: str,
    source: str,
    target: str,
    opset: int,
    precision: Precision = "float",
    spelling: Spelling | None = None,
) -> Draft:
    """Return the nodes and constants that take a ConvTranspose's place.

    Args:
        form: an applicable one.
        layer: the ConvTranspose.
        prefix: what all new names begin with.
        source: name of its input, (N, inputs, sizes...).
        target: name of its output.
        opset: of the graph.
        precision: what it is going to run in; `integer` avoids operators that would stay float.
        spelling: how phases are interleaved; None: as is faster in this precision.
    """
    draft = Draft(prefix, opset)
    plan, is_integer = FORMS[form], precision == "integer"
    if plan is None:
        made = write_gemm(draft, source, layer, weights_last=is_integer)
    else:
        spelling = spelling or faster_spelling(layer.sizes, is_integer=is_integer)
        made = write_convs(draft, source, layer, plan(layer.geometry), spelling)
    draft.rename(made, target)
    return draft
