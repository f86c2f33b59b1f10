"""Put images into one picture."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aigc_compress.models.data import to_pixels
from aigc_compress.storage import write_bytes

__all__ = ["encode_grid", "save_grid"]


def save_grid(images: NDArray[np.float32], path: Path, *, scale: int = 2) -> Path:
    """Write images (N, 1, H, W) in [-1, 1] as a PNG grid, about square; return its path."""
    write_bytes(path, encode_grid(images, scale=scale))
    return path


def encode_grid(images: NDArray[np.float32], *, scale: int = 2) -> bytes:
    """Return the bytes of that PNG; every pixel becomes `scale` x `scale`."""
    from PIL import Image

    pixels = to_pixels(images)
    count, height, width = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.zeros((rows * columns, height + 2, width + 2), np.uint8)
    canvas[:count, 1:-1, 1:-1] = pixels
    grid = canvas.reshape(rows, columns, height + 2, width + 2).swapaxes(1, 2)
    picture = Image.fromarray(grid.reshape(rows * (height + 2), columns * (width + 2)))
    larger = picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
    content = io.BytesIO()
    larger.save(content, "PNG")
    return content.getvalue()
