"""Feeds in an .npz file, read one sample at a time: memory does not grow with their number.

What `numpy.savez` writes is read where it stands. Compressed members, and arrays in Fortran's order
(first axis fastest), go once to temporary files without a name. Nothing is mapped into memory:
mapped pages count as the process's own.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import struct
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .artifact import TensorSpec
from .errors import AigcCompressError, FeedError, InputFileError, first_line, missing_file
from .task import Feeds

__all__ = ["NpzFeeds", "read_npz"]

LOCAL_HEADER = 30  # bytes before the name of a member; the lengths of name and extra are the last
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
PIECE_BYTES = 2**20
TURNED_BYTES = 2**23  # of an array in Fortran's order that are turned at a time


def read_npz(path: Path, inputs: Sequence[TensorSpec]) -> NpzFeeds:
    """Open one array per input with a leading sample axis: array[i] is fed for sample i.

    Where the samples of an input lack its first axis, and one sample fits there, they get it: an
    array (N, 3, 224, 224) feeds an input ("batch", 3, 224, 224) with samples (1, 3, 224, 224).
    All bytes are read once, so that a damaged file is found at once.

    Raises:
        InputFileError: no .npz of plain arrays.
        FeedError: names or numbers of samples do not fit the model's inputs.
    """
    if not path.is_file():
        raise missing_file(path)
    with _told_of(path):
        file = _File(path, path.open("rb"))
        if not zipfile.is_zipfile(file.opened):
            raise ValueError("it is empty, cut off or something else")
        with zipfile.ZipFile(file.opened) as archive:
            members = [_Member.of(archive, info) for info in archive.infolist()]
            count = _sample_count(path, members, inputs)
            rows = {each.name: each.rows(archive, file) for each in members}
    ordered = {spec.name: _batched(rows[spec.name], spec) for spec in inputs}
    return NpzFeeds(_Source(path.absolute(), tuple(inputs), file.stamp, ordered), range(count))


class NpzFeeds(Sequence[Feeds]):
    """Sets of feeds in a file, each read when it is asked for; slices read nothing.

    Reading raises InputFileError where the file has changed since it was opened. A pickled one
    opens the file again, and raises the same.
    """

    def __init__(self, source: _Source, chosen: range) -> None:
        """Take the samples of these indices."""
        self._source, self._chosen = source, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Feeds: ...
    @overload
    def __getitem__(self, index: slice) -> NpzFeeds: ...
    def __getitem__(self, index: int | slice) -> Feeds | NpzFeeds:
        if isinstance(index, slice):
            return NpzFeeds(self._source, self._chosen[index])
        place = self._chosen[index]
        return {name: rows.read(place) for name, rows in self._source.rows.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        source = self._source
        return _opened_again, (source.path, source.inputs, source.stamp, self._chosen)


def _opened_again(
    path: Path, inputs: tuple[TensorSpec, ...], stamp: tuple[int, int], chosen: range
) -> NpzFeeds:
    source = read_npz(path, inputs)._source
    if source.stamp != stamp:
        raise _changed(path)
    return NpzFeeds(source, chosen)


@dataclass(frozen=True)
class _Source:
    """An open file: whose inputs it feeds, its stamp when it was opened, and rows by input."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    stamp: tuple[int, int]
    rows: Mapping[str, _Rows]


class _File:
    """An open file, the user's or a temporary one; it is closed when nothing reads it any more."""

    def __init__(self, path: Path, opened: IO[bytes]) -> None:
        """Take an open file; `path` is what the user named, for errors."""
        self.path, self.opened = path, opened
        self.stamp = _stamp(opened)
        weakref.finalize(self, opened.close)

    @classmethod
    def temporary(cls, path: Path) -> _File:
        """Return an empty file without a name."""
        return cls(path, tempfile.TemporaryFile())

    def end_writing(self) -> None:
        """Note how the file stands when everything is written."""
        self.opened.flush()
        self.stamp = _stamp(self.opened)

    def read(self, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the array that begins at a byte."""
        content = bytearray(math.prod(shape) * dtype.itemsize)
        try:
            self.opened.seek(start)
            count = self.opened.readinto(content)  # type: ignore[attr-defined]
            is_same = _stamp(self.opened) == self.stamp
        except OSError as error:
            raise InputFileError(f"{self.path} cannot be read: {first_line(error)}") from error
        if count != len(content) or not is_same:
            raise _changed(self.path)
        return np.ndarray(shape, dtype, content)


@dataclass(frozen=True)
class _Rows:
    """Arrays of one kind that stand one behind the other in a file.

    Attributes:
        file: that holds them.
        start: byte at which the first begins.
        shape: of each.
        dtype: of each.
        is_fortran: whether each one's first axis is the fastest.
    """

    file: _File
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool = False

    def read(self, index: int) -> NDArray[Any]:
        place = self.start + index * math.prod(self.shape) * self.dtype.itemsize
        if not self.is_fortran:
            return self.file.read(place, self.shape, self.dtype)
        turned = self.file.read(place, self.shape[::-1], self.dtype).T
        return turned.copy(order="C")


@dataclass(frozen=True)
class _Member:
    """A member of the archive: its array's name, where its bytes begin in it, and its header."""

    name: str
    info: zipfile.ZipInfo
    start: int
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
        """Read a member's header; raises ValueError where it is no plain array of this size."""
        name = info.filename.removesuffix(".npy")
        with archive.open(info) as content:
            version = npy.read_magic(content)
            if version not in HEADERS:
                raise ValueError(f"{name} is of an unknown format, {version}.")
            shape, is_fortran, dtype = HEADERS[version](content)
            start = content.tell()
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are not read.")
        if min(shape, default=0) < 0 or info.file_size < start + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} is cut off.")
        return cls(name, info, start, shape, is_fortran, dtype)

    def rows(self, archive: zipfile.ZipFile, file: _File) -> _Rows:
        """Return the array's rows on disk; all bytes are read, and their checksum compared."""
        start = self.start
        with archive.open(self.info) as content:
            if self.info.compress_type == zipfile.ZIP_STORED:
                start += _begin(self.info, file.opened)
                while content.read(PIECE_BYTES):
                    pass
            else:
                file = _File.temporary(file.path)
                shutil.copyfileobj(content, file.opened, PIECE_BYTES)
                file.end_writing()
        rows = _Rows(file, start, self.shape[1:], self.dtype)
        return _turned(rows, self.shape[0]) if self.is_fortran else rows


def _sample_count(path: Path, members: Sequence[_Member], inputs: Sequence[TensorSpec]) -> int:
    names = [spec.name for spec in inputs]
    found = [each.name for each in members]
    if sorted(found) != sorted(names):
        raise FeedError(
            f"{path} holds {sorted(found)}, the model's inputs are {sorted(names)}."
            " Store one array per input under its name, with a leading sample axis."
        )
    counts = {each.name: each.shape[0] if each.shape else 0 for each in members}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise FeedError(f"{path} must hold the same number of samples per input, not {counts}.")
    return counts[names[0]]


def _batched(rows: _Rows, spec: TensorSpec) -> _Rows:
    lacks_axis = len(rows.shape) == len(spec.shape) - 1
    if lacks_axis and (spec.shape[0] == 1 or isinstance(spec.shape[0], str)):
        return replace(rows, shape=(1, *rows.shape))
    return rows


def _begin(info: zipfile.ZipInfo, opened: IO[bytes]) -> int:
    """Return where the bytes of a member begin; its local header may be longer than its entry."""
    opened.seek(info.header_offset + LOCAL_HEADER - 4)
    sizes: tuple[int, int] = struct.unpack("<HH", opened.read(4))
    return info.header_offset + LOCAL_HEADER + sum(sizes)


def _turned(rows: _Rows, count: int) -> _Rows:
    """Return rows, in a temporary file, of an array in Fortran's order.

    There one value of all samples stands together. Some values of all are read at a time, and go
    where their samples are gathered, each still in Fortran's order.
    """
    values, size = math.prod(rows.shape), rows.dtype.itemsize
    most = max(1, TURNED_BYTES // max(1, count * size))
    file = _File.temporary(rows.file.path)
    for first in range(0, values, most):
        shape = min(most, values - first), count
        table = rows.file.read(rows.start + first * count * size, shape, rows.dtype)
        for index, part in enumerate(np.ascontiguousarray(table.T)):
            file.opened.seek((index * values + first) * size)
            file.opened.write(part.tobytes())
    file.end_writing()
    return replace(rows, file=file, start=0, is_fortran=True)


def _stamp(opened: IO[bytes]) -> tuple[int, int]:
    """Return what changes when a file is written: its size in bytes, and its time in ns."""
    found = os.fstat(opened.fileno())
    return found.st_size, found.st_mtime_ns


def _changed(path: Path) -> InputFileError:
    return InputFileError(f"{path} changed while it was in use. Run again with a file that stays.")


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Raise InputFileError for whatever goes wrong with a file."""
    try:
        yield
    except AigcCompressError:
        raise
    except Exception as error:  # numpy's parser of damaged headers raises whatever it runs into
        raise InputFileError(
            f"{path} is not an .npz file of plain arrays: {first_line(error)}"
        ) from error
