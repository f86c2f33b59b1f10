"""Static calibration: watch activations run by, then choose what range of each goes to integers.

Memory does not grow with the number of samples: a tensor leaves a histogram behind, whatever the
method that its range is chosen by later.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, TypeProto

from aigc_compress.errors import PassError, UsageError, unknown_name
from aigc_compress.task import Feeds, OnStep

from .clipping import Clipping, Ends
from .histogram import Observed
from .probe import Probe, inferred_types

__all__ = ["METHODS", "Observed", "Range", "calibrate", "choose_ranges", "to_tensors_data"]

FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
MOST_BITS = 16

_CHOICES: Mapping[str, Callable[[Clipping], Ends]] = {
    "minmax": Clipping.min_max,
    "percentile-99.9": partial(Clipping.percentile, percent=99.9),
    "percentile-99.99": partial(Clipping.percentile, percent=99.99),
    "percentile-99.999": partial(Clipping.percentile, percent=99.999),
    "entropy": Clipping.entropy,
    "mse": Clipping.least_error,
}
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "percentile": tuple(name for name in _CHOICES if name.startswith("percentile")),
    "auto": tuple(_CHOICES),
}
METHODS = (*_CHOICES, *_GROUPS)


@dataclass(frozen=True)
class Range:
    """What range of a tensor goes to integers.

    Attributes:
        low: at most zero.
        high: at least zero; both are zero where all values are.
        method: that chose them.
        mse: expected squared error on the values seen, by method tried.
        dtype: of the tensor, as numpy names it.
    """

    low: float
    high: float
    method: str
    mse: Mapping[str, float]
    dtype: str = "float32"


def calibrate(
    model: ModelProto,
    feeds: Iterable[Feeds],
    *,
    tensors: Sequence[str] | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Observed]:
    """Run the graph over all feeds, once, and return what was seen of each tensor.

    Args:
        model: a graph of floats.
        feeds: any iterable, a generator too.
        tensors: inputs and activations of the main graph that hold floats (float32 or float16).
            Default: all of them.
        on_step: called with (done, total) after each set of feeds; total is `done` where the
            iterable does not tell its length.

    Raises:
        UsageError: a wanted tensor is not in the main graph, or holds no floats.
        PassError: there are no feeds, or ONNX Runtime does not run the graph.
    """
    probe = Probe(model, _wanted(model, tensors))
    seen: dict[str, Observed] = {}
    done, total = 0, operator.length_hint(feeds)
    for done, each in enumerate(feeds, 1):
        for name, values in probe.run(each):
            if values.dtype.name in FLOATS.values():
                seen[name] = seen.get(name, Observed()).including(values)
        if on_step is not None:
            on_step(done, max(done, total))
    if not done:
        raise PassError("Static quantization needs calibration feeds, and there are none.")
    for name in tensors or ():
        if name not in seen:
            raise unknown_name("tensor of floats", name, seen)
    return seen


def choose_ranges(
    observed: Mapping[str, Observed],
    *,
    bits: int = 8,
    symmetric: bool = False,
    method: str = "auto",
) -> dict[str, Range]:
    """Return the range of each tensor.

    Args:
        observed: what `calibrate` returned, or a part of it.
        bits: of the integers, 2 to 16.
        symmetric: int8 without -128 and zero point 0, so low = -high; else uint8, any zero point.
        method: one of METHODS. Of several, `percentile` (three) and `auto` (all) take for each
            tensor the one with the least expected squared error, the first named where some are
            equal. The least error of a tensor need not be the least of the network's outputs:
            compare with `minmax` there.

    Raises:
        UsageError: there is no such method, or the bits are out of bounds.
        PassError: a tensor held infinities or NaN, or no values at all.
    """
    if method not in METHODS:
        raise unknown_name("calibration method", method, METHODS)
    if not 2 <= bits <= MOST_BITS:
        raise UsageError(f"bits is {bits}; it must be from 2 to {MOST_BITS}. 8 is usual.")
    tried = _GROUPS.get(method, (method,))
    for name, each in observed.items():
        _require_values(name, each)
    return {name: _best(Clipping(each, bits, symmetric), tried) for name, each in observed.items()}


def to_tensors_data(ranges: Mapping[str, Range]) -> Any:
    """Return the ranges as the `TensorsData` that ONNX Runtime's `QDQQuantizer` takes.

    The quantizer gives the input of a Relu or Clip the range of its output, in this very object, so
    make one for each quantizer.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

    ends = {}
    for name, each in ranges.items():
        dtype = np.dtype(each.dtype).type
        ends[name] = dtype(each.low), dtype(each.high)
    return TensorsData(CalibrationMethod.MinMax, ends)


def _wanted(model: ModelProto, tensors: Sequence[str] | None) -> list[str]:
    """Return the names to watch, each once; without a choice all that may hold floats."""
    types = inferred_types(model)
    constants = {each.name for each in model.graph.initializer}
    inputs = [each.name for each in model.graph.input if each.name not in constants]
    made = [name for node in model.graph.node for name in node.output if name]
    known = [name for name in (*inputs, *made) if _may_be_floats(types.get(name))]
    if tensors is None:
        return known
    for name in tensors:
        if name not in known:
            raise unknown_name("tensor of floats", name, known)
    return list(dict.fromkeys(tensors))


def _may_be_floats(kind: TypeProto | None) -> bool:
    """Whether a type is a tensor of floats, or not known before the graph is run."""
    if kind is None or kind.WhichOneof("value") is None:
        return True
    is_tensor = kind.HasField("tensor_type")
    return is_tensor and kind.tensor_type.elem_type in (TensorProto.UNDEFINED, *FLOATS)


def _require_values(name: str, observed: Observed) -> None:
    if observed.not_finite:
        raise PassError(
            f"The tensor {name} held {observed.not_finite} infinities or NaN on the calibration"
            " feeds, which no range of integers holds. Leave its operators in floats."
        )
    if not observed.count:
        raise PassError(
            f"The tensor {name} was empty on all calibration feeds, so no range can be chosen."
        )


def _best(clipping: Clipping, methods: Sequence[str]) -> Range:
    """Try the methods and return the range of the one with the least error."""
    ends = {method: _CHOICES[method](clipping) for method in methods}
    mse = {method: clipping.error(each) for method, each in ends.items()}
    method = min(mse, key=lambda each: mse[each])
    return Range(*ends[method], method, mse, clipping.observed.dtype)
