"""torch -> ONNX: a graph with dynamic axes, folded, and equal to the module on real feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorShapeProto
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.engines.ort import OrtSession
from aigc_compress.engines.torch import TorchRunner
from aigc_compress.errors import PassError, first_line
from aigc_compress.task import Feeds

from .base import Context, quiet_library
from .folding import apply_rules
from .operators import all_nodes

__all__ = ["ExportConfig", "ExportPass", "example_arguments", "export_graph"]


class ExportConfig(BaseModel):
    """Settings of the export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opset: int = Field(default=20, ge=17, le=23, description="ONNX operator set of the graph")
    dynamic_axes: dict[str, dict[int, str]] = Field(
        default_factory=dict, description="names of the axes that stay dynamic, by input and axis"
    )
    tolerance: float = Field(
        default=1e-4,
        gt=0,
        description="largest difference to torch, as a share of the largest output",
    )


class ExportPass:
    """Export with torch.onnx (dynamo); BatchNorm is folded into its neighbours by onnxscript."""

    name = "export"
    config = ExportConfig

    def run(self, artifact: Artifact, config: ExportConfig, context: Context) -> Artifact:
        """Export and compare with torch on every set of `context.check_feeds`.

        Raises:
            PassError: torch cannot export the module, an axis froze, or outputs differ.
        """
        module = artifact.payload
        runner = TorchRunner(module)
        references = [runner.run(feeds) for feeds in context.check_feeds]
        model = export_graph(module, context.check_feeds, references, config)
        difference = _compare(model, context.check_feeds, references, config.tolerance)
        numbers = {"largest_relative_difference": difference}
        step = Step(self.name, {"opset": config.opset}, None, numbers)
        return artifact.then(model, step, stage="onnx")


def export_graph(
    module: Any,
    feeds: Sequence[Feeds],
    references: Sequence[Mapping[str, NDArray[Any]]],
    config: ExportConfig,
) -> ModelProto:
    """Return the folded graph of a module, its dynamic axes named and proved dynamic.

    Args:
        module: an nn.Module with `input_names` and `output_names`.
        feeds: sets of feeds of different sizes; the first is the example that is traced.
        references: the module's outputs on each of them.
        config: operator set and axes.

    Raises:
        PassError: torch cannot export the module, or an axis froze.
    """
    model = _export(module, feeds[0], config)
    _name_axes(model, config.dynamic_axes)
    _mark_dynamic_outputs(model, references, feeds, config.dynamic_axes)
    _require_dynamic(model, config.dynamic_axes)
    _drop_traces(model)
    return model


def example_arguments(
    module: Any, example: Feeds, axes: Mapping[str, Mapping[int, str]]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return a set of feeds as tensors in the module's order, and its axes as torch.export asks."""
    import torch
    from torch.export import Dim

    names = list(module.input_names)
    inputs = tuple(torch.from_numpy(np.asarray(example[name])) for name in names)
    dims = [{axis: Dim.AUTO for axis in axes.get(name, {})} for name in names]
    return inputs, _like_signature(module, dims)


def _export(module: Any, example: Feeds, config: ExportConfig) -> ModelProto:
    import torch

    inputs, shapes = example_arguments(module, example, config.dynamic_axes)
    try:
        with quiet_library():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=config.opset,
                dynamic_shapes=shapes,
                input_names=list(module.input_names),
                output_names=list(module.output_names),
                optimize=False,  # onnxscript's default rules may change numbers
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise PassError(f"torch cannot export this module to ONNX: {first_line(error)}") from error
    assert program is not None
    return _fold_initializers(program.model_proto)


def _like_signature(module: Any, axes: list[dict[int, Any]]) -> tuple[Any, ...]:
    """Nest the axes of *args inputs as torch.export wants them: named first, the rest a tuple."""
    import inspect

    parameters = inspect.signature(module.forward).parameters.values()
    named = sum(p.kind is not inspect.Parameter.VAR_POSITIONAL for p in parameters)
    has_rest = named < len(axes)
    return (*axes[:named], tuple(axes[named:])) if has_rest else tuple(axes)


def _fold_initializers(model: ModelProto) -> ModelProto:
    """Fold constants of any size: the exporter leaves LSTM weights behind Slice and Concat."""
    import onnx_ir as ir

    graph = ir.from_proto(model)
    apply_rules(graph)
    return ir.to_proto(graph)


def _name_axes(model: ModelProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give the exporter's axes (s10, s27) the task's names, everywhere in the graph."""
    renamed = {}
    for value in model.graph.input:
        for axis, name in axes.get(value.name, {}).items():
            renamed[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]


def _mark_dynamic_outputs(
    model: ModelProto,
    references: Sequence[Mapping[str, NDArray[Any]]],
    feeds: Sequence[Feeds],
    axes: Mapping[str, Mapping[int, str]],
) -> None:
    """Write a name on every output axis whose size follows an input axis.

    torch 2.13 freezes the time axis of an LSTM's output in the declared shape alone, and torch 2.11
    declares an axis too many for its states; the graph itself is right, and dynamic. Stale inner
    shapes are dropped, since they would hold the same mistakes.
    """
    sizes = [
        {name: each[key].shape[axis] for key, names in axes.items() for axis, name in names.items()}
        for each in feeds
    ]
    for output in model.graph.output:
        dims = output.type.tensor_type.shape.dim
        shape = references[0][output.name].shape
        if len(dims) != len(shape):
            del dims[:]
            dims.extend(TensorShapeProto.Dimension(dim_value=size) for size in shape)
        for axis, dim in enumerate(dims):
            seen = [reference[output.name].shape[axis] for reference in references]
            for name in sizes[0]:
                if len(set(seen)) > 1 and seen == [size[name] for size in sizes]:
                    dim.dim_param = name
    del model.graph.value_info[:]


def _require_dynamic(model: ModelProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    for value in model.graph.input:
        for axis, name in axes.get(value.name, {}).items():
            dim = value.type.tensor_type.shape.dim[axis]
            if not dim.dim_param:
                raise PassError(
                    f"The export froze axis {axis} ({name}) of {value.name} at {dim.dim_value}."
                )


def _drop_traces(model: ModelProto) -> None:
    """Drop torch's notes at the graph and at every node.

    They hold source lines with paths of this machine, and counters that rise with every export.
    """
    del model.graph.metadata_props[:]
    for node in all_nodes(model.graph):
        del node.metadata_props[:]


def _compare(
    model: ModelProto,
    feeds: tuple[Feeds, ...],
    references: list[dict[str, NDArray[Any]]],
    tolerance: float,
) -> float:
    session = OrtSession(Artifact("onnx", model), threads=1)
    worst = 0.0
    for each, reference in zip(feeds, references, strict=True):
        outputs = session.run(each)
        for name, wanted in reference.items():
            scale = float(np.abs(wanted).max()) or 1.0
            if outputs[name].shape != wanted.shape:
                raise PassError(f"The exported {name} has another shape than in torch.")
            worst = max(worst, float(np.abs(outputs[name] - wanted).max()) / scale)
    if not worst <= tolerance:
        raise PassError(
            f"The exported graph differs from torch by {worst:.2e} of the largest output;"
            f" at most {tolerance:.0e} is allowed. Nothing was written."
        )
    return worst
