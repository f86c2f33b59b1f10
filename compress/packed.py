"""`.onnx.xz`: a graph for storage and download, entropy-coded, decoded when it is loaded.

LZMA's range coder takes the place of the Huffman code of Deep Compression (Han et al. 2016), whose
codebooks come from the pass `share`. Any `xz` program reads the files.
"""

from __future__ import annotations

import lzma
from pathlib import Path

from .errors import InputFileError, OutputError

__all__ = ["MOST_BYTES", "SUFFIX", "decoded", "is_packed", "packed", "unpacked"]

SUFFIX = ".onnx.xz"
MOST_BYTES = 2**31  # of an ONNX file without external data


def is_packed(path: str | Path) -> bool:
    """Tell by its name whether a file is one of these."""
    return str(path).endswith(SUFFIX)


def packed(content: bytes) -> bytes:
    """Return an `.xz` stream of a graph; the same bytes give the same stream.

    Raises:
        OutputError: the graph is larger than an ONNX file can be.
    """
    if len(content) >= MOST_BYTES:
        raise OutputError("Graphs above 2 GB are not packed.")
    # Four bytes of alignment: weights are float32, int32 or rows of int8.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 2, "lp": 2}]
    return lzma.compress(content, check=lzma.CHECK_CRC64, filters=filters)


def unpacked(path: Path) -> bytes:
    """Return the graph of such a file.

    Raises:
        InputFileError: it is missing, truncated, damaged, or grows beyond what a graph can be.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputFileError(f"{path} is no packed ONNX model: {error}.") from error
    return decoded(content, str(path))


def decoded(content: bytes, name: str) -> bytes:
    """Return the graph of such a file's bytes; the name is for messages.

    Raises:
        InputFileError: it is truncated, damaged, or grows beyond what a graph can be.
    """
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2**30)
    try:
        graph = decoder.decompress(content, max_length=MOST_BYTES)
    except (lzma.LZMAError, MemoryError) as error:
        raise InputFileError(f"{name} is no packed ONNX model: {error}.") from error
    if not decoder.eof:
        raise InputFileError(f"{name} is cut off, or holds more than an ONNX model can.")
    return graph
