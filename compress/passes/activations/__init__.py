"""Activations without an integer kernel, written in operators that have one."""

from .activations import ActivationsConfig, ActivationsPass

__all__ = ["ActivationsConfig", "ActivationsPass"]
