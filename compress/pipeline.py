"""Run passes one after the other and check both doors of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from .artifact import Artifact, TensorSpec, graph_tensors
from .engines.ort import OrtSession
from .errors import PassError
from .passes import PASSES, Context

__all__ = ["run_passes"]


def run_passes(
    artifact: Artifact, steps: Sequence[tuple[str, BaseModel]], context: Context
) -> Artifact:
    """Run the named passes in order.

    Raises:
        PassError: a pass failed, or its result lost an input, an output or a dynamic axis, or
            gives numbers that are not finite on the check feeds.
    """
    for name, config in steps:
        before = artifact
        artifact = PASSES[name].run(before, config, context)
        if before.stage == artifact.stage == "onnx":
            _check_face(name, before, artifact)
            _check_numbers(name, before, artifact, context)
    return artifact


def _check_face(name: str, before: Artifact, after: Artifact) -> None:
    for kind, old, new in zip(
        ("inputs", "outputs"),
        graph_tensors(before.payload),
        graph_tensors(after.payload),
        strict=True,
    ):
        if [_face(each) for each in old] != [_face(each) for each in new]:
            raise PassError(f"The pass {name} changed the {kind}: {old} became {new}.")


def _face(spec: TensorSpec) -> tuple[str, str, tuple[int | None, ...]]:
    """Return what must not change: the name of a dynamic axis may, its being dynamic may not."""
    return spec.name, spec.dtype, tuple(a if isinstance(a, int) else None for a in spec.shape)


def _check_numbers(name: str, before: Artifact, after: Artifact, context: Context) -> None:
    sessions = [OrtSession(each, threads=1) for each in (before, after)]
    for feeds in context.check_feeds:
        wanted, found = (session.run(feeds) for session in sessions)
        for key, value in found.items():
            if value.shape != wanted[key].shape:
                raise PassError(f"The pass {name} changed the shape of {key}.")
            is_new_fault = np.isfinite(wanted[key]).all() and not np.isfinite(value).all()
            if value.dtype.kind == "f" and is_new_fault:
                raise PassError(f"The pass {name} made {key} infinite or not a number.")
