"""What the processor can do, without any package: from what the system says of it."""

from __future__ import annotations

import functools
import platform
from collections.abc import Collection, Mapping
from pathlib import Path

__all__ = ["architecture", "flags", "lacks"]

NAMES = {"amd64": "x86_64", "arm64": "aarch64"}
CPUINFO = Path("/proc/cpuinfo")


def architecture() -> str:
    """Return the architecture's name, as Linux spells it."""
    name = platform.machine().lower()
    return NAMES.get(name, name)


@functools.cache
def flags() -> frozenset[str] | None:
    """Return the instruction sets by Linux' names; None where the system does not say."""
    try:
        lines = CPUINFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, told = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(told.lower().split())
    return None


def lacks(needs: Mapping[str, Collection[str]]) -> str:
    """Return what of a variant's needs is missing, in words; empty where nothing is for sure."""
    asked, known = needs.get(architecture()), flags()
    if not asked or known is None or known & {*asked}:
        return ""
    return f"this processor has no {' or '.join(sorted(asked))}"
