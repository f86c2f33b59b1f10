"""`--set key=value`, as several verbs take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aigc_compress.errors import UsageError

__all__ = ["pairs"]


def pairs(texts: Sequence[str]) -> dict[str, Any]:
    """Return settings by key; values are read as YAML. Raises UsageError."""
    import yaml

    values: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {text!r} must look like key=value.")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text!r}: the value is not YAML.") from error
    return values
