"""Our own `quantize`, called as a user would."""

from __future__ import annotations

from aigc_compress.quantizing import quantize

from .conversion import Job

__all__ = ["convert"]


def convert(job: Job) -> None:
    """Quantize the model that the user named, not the exported graph, as `quantize` does."""
    quantize(job.source, job.output, job.options)
