"""Neural Compressor's static quantization of a torch module, exported to ONNX with Q/DQ."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np

from aigc_compress.errors import PassError
from aigc_compress.loading import load_artifact
from aigc_compress.task import Feeds
from aigc_compress.workload import FeedOptions, TaskWorkload, make_workload

from .conversion import Job

__all__ = ["convert"]


def convert(job: Job) -> None:
    """Prepare, calibrate, convert and export, with the default static configuration.

    Raises:
        PassError: the source is no torch module; Neural Compressor takes nothing else since 3.8.
    """
    import torch

    library = importlib.import_module("neural_compressor.torch.quantization")
    export = importlib.import_module("neural_compressor.torch.export").export
    artifact = load_artifact(job.source)
    if artifact.stage != "torch":
        raise PassError("Neural Compressor 3 takes torch modules alone, no ONNX graphs.")
    workload = make_workload(artifact, FeedOptions())
    assert isinstance(workload, TaskWorkload)
    module = artifact.payload
    names = list(module.input_names)
    example = _tensors(workload.check_feeds()[0], names)
    axes = workload.task.dynamic_axes()
    shapes = tuple({axis: torch.export.Dim.AUTO for axis in axes.get(n, {})} for n in names)
    prepared = library.prepare(
        export(module, example, _like_arguments(module, shapes)),
        library.get_default_static_config(),
    )
    with torch.no_grad():
        for feeds in job.calibration:
            prepared(*_tensors(feeds, names))
    quantized = library.convert(prepared)
    _store_integers(quantized)
    torch.onnx.export(
        quantized,
        example,
        job.output,
        dynamo=True,
        opset_version=20,
        dynamic_shapes=_like_arguments(quantized, shapes),
        input_names=names,
        output_names=list(module.output_names),
        external_data=False,
        verbose=False,
    )


def _store_integers(module: Any) -> None:
    """Quantize the weights for good; Neural Compressor leaves that to torch's own compiler."""
    folding = importlib.import_module("torchao.quantization.pt2e.constant_fold")
    folding.constant_fold(
        module, lambda node: "quantize_per" in str(node.target).replace("dequantize", "")
    )


def _tensors(feeds: Feeds, names: list[str]) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(np.asarray(feeds[name])) for name in names)


def _like_arguments(module: Any, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Nest the axes of *args as torch.export wants them: named first, the rest in a tuple."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
        return shapes
    named = len(parameters) - 1
    return (*shapes[:named], tuple(shapes[named:]))
