"""NNCF's post-training quantization of an ONNX graph, every default; OpenVINO runs the result."""

from __future__ import annotations

import importlib

from .conversion import Job

__all__ = ["convert"]


def convert(job: Job) -> None:
    """Quantize with as many calibration feeds as there are."""
    import onnx

    nncf = importlib.import_module("nncf")
    dataset = nncf.Dataset(job.calibration)
    model = nncf.quantize(onnx.load(job.graph), dataset, subset_size=len(job.calibration))
    onnx.save(model, job.output)
