"""The data of the reference models: splits that never overlap, embedded or from a provider.

Fashion-MNIST (Zalando, MIT licence), 28x28 grey images of ten kinds of clothes:

* test: the official 10,000 test images. Numbers are reported on these.
* validation: of the 60,000 training images, the last 500 of each class. Choices are made on these.
* train: the other 55,000. Their first 100 of each class are the calibration images.

The King James text (public domain), 1,189 chapters in order, a verse a line, a blank line between
chapters. Chapter i (from 0) belongs to test when i % 20 == 19, to validation when i % 20 == 9,
else to train.

Test, validation and calibration images and the whole text are embedded in the package. Only
training on the full 55,000 images needs a provider: see `find_training_images`.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import InputFileError, NotOnThisMachineError
from aigc_compress.storage import write_bytes
from aigc_compress.task import OnStep

__all__ = [
    "CLASSES",
    "IMAGES_LICENCE",
    "TEXT_LICENCE",
    "Images",
    "calibration_images",
    "find_training_images",
    "images",
    "text",
    "to_pixels",
    "to_unit_range",
    "training_images",
]

CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
IMAGES_LICENCE = "Trained on Fashion-MNIST, (c) 2017 Zalando SE: MIT licence."
TEXT_LICENCE = "Trained on the King James text: public domain."
VALIDATION_PER_CLASS = 500
CALIBRATION_PER_CLASS = 100
CHAPTER_STRIDE, VALIDATION_CHAPTER, TEST_CHAPTER = 20, 9, 19

Split = Literal["train", "validation", "test"]

# SHA-256 of the four files of Fashion-MNIST as its authors publish them.
FILES = {
    "train-images-idx3-ubyte.gz": (
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
    ),
    "train-labels-idx1-ubyte.gz": (
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
    ),
}
TRAINING_FILES = tuple(name for name in FILES if name.startswith("train"))
PUBLIC_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
FOLDER_VARIABLE = "AIGC_COMPRESS_DATA"


class Images(NamedTuple):
    """Images with their classes: pixels uint8 (N, 28, 28), labels uint8 (N,) in 0..9."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def images(split: Literal["validation", "test"]) -> Images:
    """Return an embedded split of Fashion-MNIST: 5,000 validation or 10,000 test images."""
    arrays = _embedded_images()
    return Images(arrays[f"{split}_pixels"], arrays[f"{split}_labels"])


def calibration_images() -> Images:
    """Return the 1,000 embedded training images that calibrate quantization, 100 of each class."""
    arrays = _embedded_images()
    return Images(arrays["calibration_pixels"], arrays["calibration_labels"])


def training_images(folder: Path) -> Images:
    """Return the 55,000 images of the train split from a folder with the original files."""
    everything = read_idx_pair(folder, "train")
    held_out = last_of_each_class(everything.labels, VALIDATION_PER_CLASS)
    kept = np.setdiff1d(np.arange(len(everything.labels)), held_out)
    return Images(everything.pixels[kept], everything.labels[kept])


def text(split: Split) -> str:
    """Return the chapters of one split of the King James text, a blank line between chapters."""
    chapters = embedded_text().split("\n\n")
    return "\n\n".join(c for i, c in enumerate(chapters) if _split_of_chapter(i) == split) + "\n"


def to_unit_range(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn uint8 pixels (N, 28, 28) into float32 (N, 1, 28, 28) in [-1, 1]."""
    return (pixels[:, None].astype(np.float32) / 127.5) - 1.0


def to_pixels(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn float32 (N, 1, 28, 28) in [-1, 1] into uint8 (N, 28, 28), rounding and clipping."""
    pixels: NDArray[np.uint8] = np.clip(np.rint((image[:, 0] + 1.0) * 127.5), 0, 255).astype(
        np.uint8
    )
    return pixels


def find_training_images(folder: Path | None = None, on_step: OnStep | None = None) -> Path:
    """Return a folder with the two training files of Fashion-MNIST, checked by SHA-256.

    Looks in `folder`, or else in $AIGC_COMPRESS_DATA, the cache, the installed Debian package,
    that package downloaded (no root needed), and the dataset's public address, in this order.

    Args:
        folder: a folder with the original `train-*-ubyte.gz` files; no other place is tried then.
        on_step: called with (bytes so far, bytes in all) while a file is downloaded.

    Raises:
        InputFileError: `folder` lacks the files, or a file's digest differs.
        NotOnThisMachineError: no place had the files; the message names every way.
    """
    if folder is not None:
        _check_files(folder)
        return folder
    cache = _cache_folder()
    installed = Path("/usr/share/datasets/fashion-mnist")
    variable = os.environ.get(FOLDER_VARIABLE)
    for place in ([Path(variable)] if variable else []) + [cache, installed]:
        if all((place / name).is_file() for name in TRAINING_FILES):
            _check_files(place)
            return place
    reasons = []
    for provide in (_from_debian, _from_public_address):
        try:
            provide(cache, on_step or _ignore)
            _check_files(cache)
            return cache
        except (OSError, InputFileError) as error:
            reasons.append(f"{provide.__doc__}: {error}")
    raise NotOnThisMachineError(
        "The 55,000 training images of Fashion-MNIST are not here. Tried: "
        + "; ".join(reasons)
        + f". Ways to get them: put {' and '.join(TRAINING_FILES)} into a folder and name it with"
        f" --data or ${FOLDER_VARIABLE}; or `apt-get install {DEBIAN_PACKAGE}`;"
        f" or download them from {PUBLIC_ADDRESS}."
    )


def read_idx_pair(folder: Path, prefix: Literal["train", "t10k"]) -> Images:
    """Read the image and label files of the IDX format (16 and 8 bytes of header)."""
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return Images(pixels, labels)


def last_of_each_class(labels: NDArray[np.uint8], count: int) -> NDArray[np.intp]:
    """Return the sorted indices of the last `count` samples of every class."""
    picks = [np.flatnonzero(labels == label)[-count:] for label in range(len(CLASSES))]
    return np.sort(np.concatenate(picks))


@functools.cache
def embedded_text() -> str:
    """Return the whole King James text as embedded in the package."""
    return lzma.decompress(_embedded_file("king-james.txt.xz").read_bytes()).decode("ascii")


@functools.cache
def _embedded_images() -> dict[str, NDArray[Any]]:
    with _embedded_file("fashion-mnist.npz").open("rb") as file, np.load(file) as arrays:
        loaded: dict[str, NDArray[Any]] = {name: arrays[name] for name in arrays.files}
    return loaded


def _embedded_file(name: str) -> Path:
    return Path(str(resources.files("aigc_compress.models"))) / "embedded" / name


def _split_of_chapter(index: int) -> Split:
    position = index % CHAPTER_STRIDE
    if position == TEST_CHAPTER:
        return "test"
    return "validation" if position == VALIDATION_CHAPTER else "train"


def _check_files(folder: Path) -> None:
    for name in TRAINING_FILES:
        path = folder / name
        if not path.is_file():
            raise InputFileError(f"{folder} has no {name}. It must hold {TRAINING_FILES}.")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != FILES[name]:
            raise InputFileError(
                f"{path} is not the published file: its SHA-256 is {found}, it must be"
                f" {FILES[name]}. Delete it and get it again."
            )


def _from_debian(cache: Path, on_step: OnStep) -> None:
    """Debian package"""  # noqa: D415
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise FileNotFoundError("apt-get and dpkg-deb are not here")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        on_step(0, 1)
        _quietly(["apt-get", "download", DEBIAN_PACKAGE], work)
        package = next(work.glob("*.deb"), None)
        if package is None:
            raise FileNotFoundError("apt-get downloaded nothing")
        _quietly(["dpkg-deb", "-x", str(package), "unpacked"], work)
        for found in (work / "unpacked/usr/share/datasets/fashion-mnist").glob("*.gz"):
            write_bytes(cache / found.name, found.read_bytes())
        on_step(1, 1)


def _from_public_address(cache: Path, on_step: OnStep) -> None:
    """Public address"""  # noqa: D415
    for name in TRAINING_FILES:
        try:
            with urllib.request.urlopen(PUBLIC_ADDRESS + name, timeout=30) as response:
                total = int(response.headers.get("Content-Length", 0))
                content = bytearray()
                while chunk := response.read(1 << 16):
                    content += chunk
                    on_step(len(content), total)
        except urllib.error.URLError as error:
            raise OSError(f"{PUBLIC_ADDRESS}{name}: {error.reason}") from error
        write_bytes(cache / name, bytes(content))


def _quietly(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"{command[0]} failed: {told}")


def _cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = base / "aigc-compress" / "fashion-mnist"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _ignore(_done: int, _total: int) -> None: ...
