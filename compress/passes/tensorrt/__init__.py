"""TensorRT: which graphs it takes, and how one becomes such a graph."""

from .linter import Finding, lint

__all__ = ["Finding", "lint"]
