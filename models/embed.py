"""Rebuild the embedded data files from their sources: `python -m aigc_compress.models.embed OUT`.

Needs Debian's packages `dataset-fashion-mnist`, `bible-kjv` and `bible-kjv-text` (installed, or
unpacked with `dpkg-deb -x` into the folder named by --root).
"""

from __future__ import annotations

import argparse
import lzma
import re
import subprocess
import zipfile
from pathlib import Path

import numpy as np

from .data import CALIBRATION_PER_CLASS, CLASSES, VALIDATION_PER_CLASS, last_of_each_class
from .data import read_idx_pair as read

__all__ = ["main"]

VERSE = re.compile(r"^([1-3]?[A-Za-z]+\d+):\d+ (.*)$")


def main() -> None:
    """Write `fashion-mnist.npz` and `king-james.txt.xz` into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/"))
    options = parser.parse_args()
    _embed_images(options.root / "usr/share/datasets/fashion-mnist", options.out)
    _embed_text(options.root / "usr", options.out)


def _embed_images(source: Path, out: Path) -> None:
    train, test = read(source, "train"), read(source, "t10k")
    validation = last_of_each_class(train.labels, VALIDATION_PER_CLASS)
    kept = np.setdiff1d(np.arange(len(train.labels)), validation)
    first = [kept[train.labels[kept] == c][:CALIBRATION_PER_CLASS] for c in range(len(CLASSES))]
    calibration = np.sort(np.concatenate(first))
    arrays = {
        "test_pixels": test.pixels,
        "test_labels": test.labels,
        "validation_pixels": train.pixels[validation],
        "validation_labels": train.labels[validation],
        "calibration_pixels": train.pixels[calibration],
        "calibration_labels": train.labels[calibration],
    }
    # The .npz layout with LZMA members, a sixth smaller than numpy's own deflate.
    with zipfile.ZipFile(out / "fashion-mnist.npz", "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_LZMA
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array))


def _embed_text(usr: Path, out: Path) -> None:
    lines = subprocess.run(
        [str((usr / "bin/bible").resolve()), "-f", "gen1:1-rev22:21"],
        cwd=usr / "lib",
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    chapters: dict[str, list[str]] = {}
    for line in lines:
        match = VERSE.match(line)
        if match is None:
            raise ValueError(f"not a verse: {line!r}")
        chapters.setdefault(match[1], []).append(match[2].strip())
    text = "\n\n".join("\n".join(verses) for verses in chapters.values()) + "\n"
    compressed = lzma.compress(text.encode("ascii"), preset=9 | lzma.PRESET_EXTREME)
    (out / "king-james.txt.xz").write_bytes(compressed)


if __name__ == "__main__":
    main()
