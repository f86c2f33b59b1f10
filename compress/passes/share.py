"""Let the weights of a layer share a few values, so that a file packs smaller.

Trained quantization of Deep Compression (Han et al. 2016, section 3) without its retraining:
k-means over the weights of each tensor, centroids begun at equal distances over the weights' range,
which keeps the few large ones. Weights that are integers stay integers. The graph is as fast as
before: what shrinks is the packed file (`aigc_compress.packed`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from pydantic import BaseModel, ConfigDict, Field

from aigc_compress.artifact import Artifact, Step
from aigc_compress.errors import PassError

from .base import Context
from .graphs import all_graphs

__all__ = ["ShareConfig", "SharePass", "shared"]

KINDS = (TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8)
ITERATIONS = 30


class ShareConfig(BaseModel):
    """Settings of weight sharing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: int = Field(default=32, ge=2, le=256, description="values that a tensor may hold")
    least: int = Field(default=1024, ge=2, description="elements that a tensor has at least")


class SharePass:
    """Move every weight to the nearest of its tensor's few values."""

    name = "share"
    config = ShareConfig

    def run(self, artifact: Artifact, config: ShareConfig, context: Context) -> Artifact:
        """Return the graph with shared weights.

        The step's numbers tell how many tensors share, how many weights they hold, and the signal
        to noise ratio of each, in dB.

        Raises:
            PassError: no tensor is large enough.
        """
        model = ModelProto()
        model.CopyFrom(artifact.payload)
        noise: dict[str, float] = {}
        count = 0
        tensors = [each for graph in all_graphs(model.graph) for each in graph.initializer]
        for done, tensor in enumerate(tensors):
            context.on_step(done, len(tensors))
            if tensor.data_type not in KINDS:
                continue
            weights = numpy_helper.to_array(tensor)
            if weights.size < config.least or len(np.unique(weights)) <= config.values:
                continue
            fewer = shared(weights, config.values)
            noise[tensor.name] = _sqnr_db(weights, fewer)
            count += weights.size
            tensor.CopyFrom(numpy_helper.from_array(fewer, tensor.name))
        if not noise:
            raise PassError(
                f"No weights to share: no tensor has {config.least} elements of more than"
                f" {config.values} values."
            )
        numbers = {"tensors": len(noise), "weights": count, "sqnr_db": noise}
        step = Step(self.name, config.model_dump(mode="json"), context.seed, numbers)
        return artifact.then(model, step, stage="onnx")


def shared(weights: NDArray[np.generic], values: int) -> NDArray[np.generic]:
    """Return an array of the same shape and dtype that holds at most so many values.

    Args:
        weights: float32, int8 or uint8.
        values: centroids of the k-means.
    """
    found, places, counts = np.unique(weights, return_inverse=True, return_counts=True)
    sorted_values = found.astype(np.float64)
    centroids = np.linspace(sorted_values[0], sorted_values[-1], values)
    for _ in range(ITERATIONS):
        nearest = _nearest(centroids, sorted_values)
        members = np.bincount(nearest, counts, values)
        sums = np.bincount(nearest, counts * sorted_values, values)
        moved = np.where(members > 0, sums / np.maximum(members, 1), centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    if np.issubdtype(weights.dtype, np.integer):
        centroids = centroids.round()
    fewer = centroids[_nearest(centroids, sorted_values)].astype(weights.dtype)
    return fewer[places].reshape(weights.shape)


def _nearest(
    centroids: NDArray[np.float64], sorted_values: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the index of the nearest centroid; both are in ascending order."""
    return np.searchsorted((centroids[:-1] + centroids[1:]) / 2, sorted_values)


def _sqnr_db(weights: NDArray[np.generic], fewer: NDArray[np.generic]) -> float:
    signal = weights.astype(np.float64)
    noise = np.square(signal - fewer.astype(np.float64)).sum()
    return float(10 * np.log10(np.square(signal).sum() / max(noise, 1e-30)))
