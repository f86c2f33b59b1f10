"""ONNX Runtime's own quantization tools, as their documentation shows them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from aigc_compress.task import Feeds

from .conversion import Job

__all__ = ["dynamic", "static", "static_per_channel"]


def static(job: Job) -> None:
    """Quantize with every default: Q/DQ, min-max, one scale per tensor."""
    quantize_static(job.graph, job.output, _Reader(job.calibration))


def static_per_channel(job: Job) -> None:
    """Quantize as the documentation advises on AVX2: cleaned, per channel, 7-bit weights."""
    cleaned = Path("cleaned.onnx")  # a conversion runs in a folder of its own
    try:
        quant_pre_process(job.graph, cleaned)
    except Exception:  # its symbolic shapes fail on many graphs; this option is the documented way
        quant_pre_process(job.graph, cleaned, skip_symbolic_shape=True)
    reader = _Reader(job.calibration)
    quantize_static(cleaned, job.output, reader, per_channel=True, reduce_range=True)


def dynamic(job: Job) -> None:
    """Quantize weights, with ranges of activations measured at run time; every default."""
    quantize_dynamic(job.graph, job.output)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hand the calibration feeds over one by one."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self._feeds, None)
