"""The table of peers; to add one, write its conversion and name it here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

__all__ = ["PEERS", "Peer"]

HERE = "aigc_compress.bench.peers"
INSTALL = "pip install 'aigc-compress[peers]'"


@dataclass(frozen=True)
class Peer:
    """A toolkit with the settings that its users start from.

    Attributes:
        name: as rows name it.
        engine: what runs its result.
        conversion: `module:function` that writes its ONNX file, called with a Job in a process of
            its own; None takes the FP32 graph as it is.
        packages: import names that it needs beside the base install.
    """

    name: str
    engine: str
    conversion: str | None = None
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """Return what is missing here and how to get it; empty where nothing is."""
        names = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"{', '.join(names)} not installed: {INSTALL}" if names else ""


# The first one is the baseline of all others.
PEERS = (
    Peer("ort-fp32", "ort"),
    Peer("ort-static", "ort", f"{HERE}.stock:static"),
    Peer("ort-static-per-channel", "ort", f"{HERE}.stock:static_per_channel"),
    Peer("ort-dynamic", "ort", f"{HERE}.stock:dynamic"),
    Peer("openvino-fp32", "openvino", None, ("openvino",)),
    Peer("nncf", "openvino", f"{HERE}.nncf:convert", ("openvino", "nncf")),
    Peer(
        "neural-compressor",
        "ort",
        f"{HERE}.neural_compressor:convert",
        ("neural_compressor", "prettytable", "torchao"),
    ),
    Peer("aigc-compress", "ort", f"{HERE}.ours:convert"),
)
