"""Symmetric INT8 as TensorRT takes it, over torchao's quantization of captured graphs.

Weights are int8 in [-127, 127] with one scale per output channel, activations int8 in [-128, 127]
with one scale per tensor; zero points are 0, and biases stay float.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch.fx import GraphModule

from aigc_compress.errors import PassError, first_line

from .config import Ranges
from .layers import covered_nodes, module_of, weight_axis

__all__ = ["Calibrate", "quantized"]

Calibrate = Callable[[Any], None]


def quantized(
    graph: GraphModule, ranges: Ranges, keep_float: Collection[str], *, calibrate: Calibrate
) -> GraphModule:
    """Quantize a captured graph in place and return what it became.

    Args:
        graph: of floats; BatchNorm is folded into the layer before it.
        ranges: how ranges of activations are found.
        keep_float: names of the modules that stay float.
        calibrate: runs the observed graph on the calibration feeds.

    Raises:
        PassError: torchao refuses the graph.
    """
    # torchao draws examples for its patterns from the global generator, which must stay as it was.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            return _quantized(graph, _SymmetricQuantizer(ranges, keep_float), calibrate)
        except Exception as error:  # torchao's checks raise AssertionError, KeyError and others
            raise PassError(f"torchao cannot quantize this module: {first_line(error)}") from error


def _quantized(
    graph: GraphModule, quantizer: _SymmetricQuantizer, calibrate: Calibrate
) -> GraphModule:
    pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    prepared = pt2e.prepare_pt2e(graph, quantizer)
    calibrate(prepared)
    made: GraphModule = pt2e.convert_pt2e(prepared, fold_quantize=True)
    return made


class _SymmetricQuantizer:
    """Tells torchao which inputs of which layers are quantized, and how; a torchao `Quantizer`."""

    def __init__(self, ranges: Ranges, keep_float: Collection[str]) -> None:
        self._keep_float = frozenset(keep_float)
        # One object for all activations: readers of a tensor share its scale only then.
        self._activations = _activation_spec(ranges)
        self._weights = {axis: _weight_spec(axis) for axis in (0, 1)}

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Return the graph as it is."""
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark the data and the weight of every covered layer that does not stay float."""
        library = importlib.import_module("torchao.quantization.pt2e.quantizer")
        for node in covered_nodes(model):
            axis = weight_axis(node)
            if axis is None or module_of(node) in self._keep_float:
                continue
            data, weight = cast(tuple[Any, Any], node.args[:2])
            specs = {data: self._activations, weight: self._weights[axis]}
            node.meta["quantization_annotation"] = library.QuantizationAnnotation(
                input_qspec_map=specs, _annotated=True
            )
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept every graph: only covered layers were marked."""

    def prepare_obs_or_fq_callback(self, model: GraphModule, observers: Any) -> None:
        """Leave the observers as they were made."""


def _activation_spec(ranges: Ranges) -> Any:
    pt2e = importlib.import_module("torchao.quantization.pt2e")
    observers = {"minmax": pt2e.MinMaxObserver, "histogram": pt2e.HistogramObserver}
    return _spec(observers[ranges], torch.per_tensor_symmetric, quant_min=-128)


def _weight_spec(axis: int) -> Any:
    pt2e = importlib.import_module("torchao.quantization.pt2e")
    observer = pt2e.PerChannelMinMaxObserver
    return _spec(observer, torch.per_channel_symmetric, quant_min=-127, ch_axis=axis)


def _spec(observer: Any, scheme: Any, *, quant_min: int, ch_axis: int | None = None) -> Any:
    library = importlib.import_module("torchao.quantization.pt2e.quantizer")
    return library.QuantizationSpec(
        dtype=torch.int8,
        quant_min=quant_min,
        quant_max=127,
        qscheme=scheme,
        ch_axis=ch_axis,
        is_dynamic=False,
        observer_or_fake_quant_ctr=observer,
    )
