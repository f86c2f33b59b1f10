"""Compare a written graph with the quantized program that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import create_session, session_options
from aigc_compress.errors import PassError
from aigc_compress.task import Feeds

__all__ = ["require_agreement"]


def require_agreement(
    model: ModelProto,
    feeds: Sequence[Feeds],
    outputs: Sequence[Mapping[str, NDArray[Any]]],
    *,
    least_db: float,
) -> float:
    """Return the SQNR of the graph, run as it is written, against the program's outputs, in dB.

    Sums in another order are rounded to another integer here and there, so the two need not be
    equal; a wrong axis or scale costs far more.

    Raises:
        PassError: the SQNR is below `least_db`, or ONNX Runtime does not run the graph.
    """
    found = _run_as_written(model, feeds)
    agreement = lowest_agreement_db(outputs, found)
    if agreement < least_db:
        raise PassError(
            f"The exported graph agrees with the quantized module at {agreement:.1f} dB;"
            f" {least_db:g} dB are the least."
        )
    return agreement


def _run_as_written(model: ModelProto, feeds: Sequence[Feeds]) -> list[dict[str, NDArray[Any]]]:
    """Run without optimizations: those round biases to integers, which is noise of their own."""
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = create_session(model.SerializeToString(), options)
    names = [each.name for each in session.get_outputs()]
    runs = [session.run(names, each) for each in feeds]
    return [{n: np.asarray(v) for n, v in zip(names, run, strict=True)} for run in runs]
