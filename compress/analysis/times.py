"""Milliseconds of every layer on floats and on integers, by ONNX Runtime's profiler."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnx import ModelProto

from aigc_compress.artifact import Artifact
from aigc_compress.meter import Meter, NodeTime
from aigc_compress.passes.partition import Operator
from aigc_compress.refine import node_operators
from aigc_compress.task import Feeds

from .forms import Forms
from .sites import Site

__all__ = ["layer_times"]

Times = tuple[float | None, float | None]


def layer_times(forms: Forms, quantized: ModelProto, feeds: Feeds) -> dict[Site, Times]:
    """Return milliseconds on floats and on integers by layer; None where the profiler tells none.

    A layer that ONNX Runtime fuses into a neighbour takes no time of its own. Borders between
    integers and floats are not counted.

    Args:
        forms: of the graph, with the meter in their context.
        quantized: the graph with every layer on integers.
        feeds: of a timed call.

    Raises:
        PassError: a graph does not run under the profiler.
    """
    meter = forms.context.meter
    if meter is None:
        return dict.fromkeys(forms.sites, (None, None))
    operators, _ = node_operators(forms.graph, quantized, meter, feeds)
    by_name = {each.name: each for each in operators}
    dynamic = _dynamic_times(forms, quantized, meter, feeds)
    return {
        site: _static_time(site, by_name) if site.form == "static" else dynamic[site]
        for site in forms.sites
    }


def _static_time(site: Site, operators: Mapping[str, Operator]) -> Times:
    found = [operators[name] for name in site.nodes]
    integer_ms = sum(each.integer_ms for each in found)
    float_ms = sum(each.float_ms for each in found)
    return float_ms, integer_ms if math.isfinite(integer_ms) else None


def _dynamic_times(
    forms: Forms, quantized: ModelProto, meter: Meter, feeds: Feeds
) -> dict[Site, Times]:
    """Return times by the output of a node that keeps it in both forms; a GRU falls into many."""
    sites = [site for site in forms.sites if site.form == "dynamic"]
    if not sites:
        return {}
    floats, integers = (
        meter.profile(Artifact("onnx", graph), feeds) for graph in (forms.graph, quantized)
    )
    return {site: (_ms(floats, site), _ms(integers, site)) for site in sites}


def _ms(times: Mapping[str, NodeTime], site: Site) -> float | None:
    found = [times[name] for name in site.outputs if name in times]
    is_scattered = site.kind == "GRU" and any(each.op != "GRU" for each in found)
    return None if is_scattered or not found else sum(each.ms for each in found)
