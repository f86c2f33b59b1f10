"""How far a graph that a pass made is from the graph before it."""

from __future__ import annotations

from dataclasses import replace

from onnx import ModelProto

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession

from .base import Context

__all__ = ["sqnr_db"]


def sqnr_db(before: Artifact, model: ModelProto, context: Context) -> float:
    """Return the lowest SQNR of any output on the check feeds, in ONNX Runtime on the CPU."""
    sessions = [OrtSession(each, threads=1) for each in (before, replace(before, payload=model))]
    outputs = [[session.run(feeds) for feeds in context.check_feeds] for session in sessions]
    return lowest_agreement_db(*outputs)
