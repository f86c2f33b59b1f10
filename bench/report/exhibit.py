"""Check what a person is to look at, before a browser gets it."""

from __future__ import annotations

import base64
import binascii
import struct

__all__ = ["MOST_EXHIBIT_CHARACTERS", "MOST_PNG_BYTES", "check_exhibit", "check_png"]

MOST_PNG_BYTES = 4_000_000
MOST_TEXT_CHARACTERS = 100_000
MOST_EXHIBIT_CHARACTERS = 2 * MOST_PNG_BYTES
MOST_PIXELS_A_SIDE = 8_192
PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
PNG_END = b"IEND\xaeB`\x82"


def check_exhibit(kind: str, data: str) -> None:
    """Raise ValueError where an exhibit is not what its kind says, or is too large."""
    if kind == "text/plain":
        if len(data) > MOST_TEXT_CHARACTERS:
            raise ValueError(f"the text has more than {MOST_TEXT_CHARACTERS} characters")
        return
    try:
        content = base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the picture is no base64: {error}") from error
    check_png(content)


def check_png(content: bytes) -> None:
    """Raise ValueError unless these are the bytes of a whole PNG of reasonable size.

    The header's width and height are looked at too: a few hundred bytes can claim a picture that
    takes all memory to show.
    """
    if not content.startswith(PNG_START) or len(content) < 33:
        raise ValueError("the picture is no PNG")
    if not content.endswith(PNG_END):
        raise ValueError("the picture is cut off: a PNG ends with an IEND chunk")
    if len(content) > MOST_PNG_BYTES:
        raise ValueError(f"the picture has more than {MOST_PNG_BYTES / 1e6:.0f} MB")
    sides = struct.unpack(">II", content[16:24])
    if not all(1 <= side <= MOST_PIXELS_A_SIDE for side in sides):
        raise ValueError(f"the picture is larger than {MOST_PIXELS_A_SIDE} pixels a side")
