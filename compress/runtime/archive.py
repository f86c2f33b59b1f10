"""The `.aigc` archive: a zip of one canonical form, in which every byte is accounted for.

Members are stored one behind another without gaps, headers hold nothing that the members do not
say, and `SHA256SUMS` holds the digests of all others: a file with any other byte is refused. Names
are never used as paths. BUNDLE.md, beside this file, is the format's description.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aigc_compress.errors import InputFileError, NotOnThisMachineError, OutputError

__all__ = ["MOST_BYTES", "SUFFIX", "Archive", "archive_bytes", "open_archive", "signature_of"]

SUFFIX = ".aigc"
SUMS, SIGNATURE = "SHA256SUMS", "SIGNATURE"
MOST_BYTES = 2**31 - 1
MOST_MEMBERS = 10_000
HEAD_BYTES = 2**18
NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,120}(/(?!\.)[A-Za-z0-9._-]{1,120}){0,4}")
LINE = re.compile(r"([0-9a-f]{64})  (.+)")

# PKWARE's APPNOTE.TXT 6.3.3, sections 4.3.7, 4.3.12 and 4.3.16; everything is little-endian.
LOCAL = struct.Struct("<IHHHHHIIIHH")
CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
END = struct.Struct("<IHHHHIIH")
VERSION, UNIX, FIRST_DAY = 20, 3 << 8, 0x0021  # 1980-01-01
PLAIN_FILE = 0o100644 << 16


def archive_bytes(members: Mapping[str, bytes], *, private_key: bytes | None = None) -> bytes:
    """Return the archive of members, in their order, with digests and, with a key, a signature.

    Args:
        members: contents by name.
        private_key: 32 bytes of an ed25519 key; None: unsigned.

    Raises:
        OutputError: a name that the format does not allow, or too much content.
        NotOnThisMachineError: signing needs the package cryptography.
    """
    bad = [name for name in members if not NAME.fullmatch(name)]
    if bad:
        raise OutputError(f"A bundle cannot hold a member {bad[0]!r}.")
    sums = "".join(f"{_digest(content)}  {name}\n" for name, content in members.items())
    held = {**members, SUMS: sums.encode()}
    if private_key is not None:
        held[SIGNATURE] = signature_of(held[SUMS], private_key)
    if sum(map(len, held.values())) + 300 * len(held) > MOST_BYTES or len(held) > MOST_MEMBERS:
        raise OutputError("A bundle holds at most 2 GiB.")
    return _zipped(held)


def signature_of(sums: bytes, private_key: bytes) -> bytes:
    """Return the content of the member SIGNATURE.

    Raises:
        NotOnThisMachineError: the package cryptography is not installed.
        OutputError: the key is not 32 bytes.
    """
    ed25519 = _ed25519()
    try:
        key = ed25519.Ed25519PrivateKey.from_private_bytes(private_key)
    except ValueError as error:
        raise OutputError(f"The key is no ed25519 private key: {error}.") from error
    public = key.public_key().public_bytes_raw()
    return f"{public.hex()} {key.sign(sums).hex()}\n".encode()


@dataclass(frozen=True)
class _Member:
    """Where a member stands, and what its headers say of it."""

    name: str
    start: int
    size: int
    crc: int

    @property
    def local(self) -> bytes:
        sizes = (self.crc, self.size, self.size, len(self.name), 0)
        return LOCAL.pack(0x04034B50, VERSION, 0, 0, 0, FIRST_DAY, *sizes) + self.name.encode()

    @property
    def central(self) -> bytes:
        sizes = (self.crc, self.size, self.size, len(self.name), 0, 0, 0, 0)
        head = (0x02014B50, UNIX | VERSION, VERSION, 0, 0, 0, FIRST_DAY)
        return CENTRAL.pack(*head, *sizes, PLAIN_FILE, self.start) + self.name.encode()

    @property
    def begin(self) -> int:
        """Return where its content begins."""
        return self.start + LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        """Return where the next member begins."""
        return self.begin + self.size


def _end(members: Iterable[_Member]) -> bytes:
    """Return everything behind the last member's content."""
    found = list(members)
    directory = b"".join(each.central for each in found)
    start = found[-1].end if found else 0
    count = len(found)
    return directory + END.pack(0x06054B50, 0, 0, count, count, len(directory), start, 0)


def _zipped(members: Mapping[str, bytes]) -> bytes:
    placed: list[_Member] = []
    for name, content in members.items():
        start = placed[-1].end if placed else 0
        placed.append(_Member(name, start, len(content), zlib.crc32(content)))
    parts = [part for each in placed for part in (each.local, members[each.name])]
    return b"".join((*parts, _end(placed)))


class _File:
    """A file read in parts; its beginning, where the small members stand, is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._head = file.read(HEAD_BYTES)
            self.size = file.seek(0, os.SEEK_END)

    def part(self, start: int, size: int) -> bytes:
        """Return a part; shorter where the file ends before, or was cut since."""
        if start + size <= len(self._head):
            return self._head[start : start + size]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)


class Archive:
    """An archive whose structure was checked; contents are read, and checked, when asked for."""

    def __init__(self, file: _File, members: Mapping[str, _Member]) -> None:
        self.path = file.path
        self._file, self._members = file, members
        self._sums = self._read_sums()
        self._checked: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all members but the digests and the signature."""
        return tuple(self._sums)

    @property
    def is_signed(self) -> bool:
        """Whether there is a signature; it may be anybody's."""
        return SIGNATURE in self._members

    def size(self, name: str) -> int:
        """Return the bytes of a member; raises InputFileError where there is none."""
        return self._member(name).size

    def read(self, name: str) -> bytes:
        """Return a member's content.

        Raises:
            InputFileError: there is none, or it is not what its digest says.
        """
        content = self._raw(name)
        if name not in self._checked:
            if name not in self._sums or _digest(content) != self._sums[name]:
                raise _damaged(self.path, f"{name} is not what its digest says")
            self._checked.add(name)
        return content

    def check(self) -> None:
        """Check every member against its digest and its header; raises InputFileError."""
        for name in self._sums:
            self.read(name)
        for member in self._members.values():
            if zlib.crc32(self._raw(member.name)) != member.crc:
                raise _damaged(self.path, f"the header of {member.name} has another checksum")

    def check_signature(self, key: bytes | None = None) -> str:
        """Return the public key, in hex, by which the bundle is signed.

        Args:
            key: 32 bytes of the public key that it must be; None: any.

        Raises:
            InputFileError: it is not signed, by another key, or changed after it was.
            NotOnThisMachineError: the package cryptography is not installed.
        """
        if not self.is_signed:
            raise InputFileError(f"{self.path} is not signed.")
        try:
            public, signature = map(bytes.fromhex, self._raw(SIGNATURE).decode("ascii").split(" "))
        except ValueError as error:
            raise _damaged(self.path, "its signature is malformed") from error
        if self._raw(SIGNATURE) != f"{public.hex()} {signature.hex()}\n".encode():
            raise _damaged(self.path, "its signature is malformed")
        if key is not None and public != key:
            raise InputFileError(f"{self.path} is signed by another key, {public.hex()}.")
        ed25519 = _ed25519()
        from cryptography.exceptions import InvalidSignature

        try:
            ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, self._raw(SUMS))
        except (InvalidSignature, ValueError) as error:
            raise _damaged(self.path, "it is not what was signed") from error
        return public.hex()

    def _member(self, name: str) -> _Member:
        if name not in self._members:
            raise _damaged(self.path, f"it has no member {name}")
        return self._members[name]

    def _raw(self, name: str) -> bytes:
        member = self._member(name)
        try:
            return self._file.part(member.begin, member.size)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _read_sums(self) -> dict[str, str]:
        try:
            lines = [LINE.fullmatch(each) for each in self._raw(SUMS).decode("ascii").splitlines()]
        except UnicodeDecodeError as error:
            raise _damaged(self.path, f"{SUMS} is not text") from error
        sums = {each[2]: each[1] for each in lines if each}
        written = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
        order = [*sums, SUMS, *([SIGNATURE] if self.is_signed else [])]
        if written != self._raw(SUMS) or order != [*self._members]:
            raise _damaged(self.path, f"{SUMS} does not list its members")
        return sums


def open_archive(path: str | Path) -> Archive:
    """Read an archive's headers and check them, byte by byte; contents are checked when read.

    Raises:
        InputFileError: the file is missing, truncated, damaged, or no bundle.
    """
    path = Path(path)
    try:
        file = _File(path)
        return Archive(file, _members(file))
    except OSError as error:
        raise _unreadable(path, error) from error


def _members(file: _File) -> dict[str, _Member]:
    path = file.path
    if file.part(0, 2) != b"PK":
        raise InputFileError(f"{path} is no bundle: `aigc-compress bundle` makes one of a model.")
    if file.size > MOST_BYTES:
        raise InputFileError(f"{path} is larger than a bundle can be, 2 GiB.")
    if file.size < END.size:
        raise _damaged(path, "it is cut off")
    end = file.part(file.size - END.size, END.size)
    signature, *_, count, size, start, comment = END.unpack(end)
    is_whole = start + size + END.size == file.size
    if signature != 0x06054B50 or comment or not is_whole or count > MOST_MEMBERS:
        raise _damaged(path, "it is cut off, or something was added")
    rest = file.part(start, file.size - start)
    members = dict(_listed(path, rest, count))
    placed = 0
    for each in members.values():
        if each.start != placed or file.part(placed, each.begin - placed) != each.local:
            raise _damaged(path, f"the header of {each.name} is not as it was written")
        placed = each.end
    if placed != start or rest != _end(members.values()):
        raise _damaged(path, "its directory is not as it was written")
    return members


def _listed(path: Path, content: bytes, count: int) -> Iterable[tuple[str, _Member]]:
    """Yield the members of the directory; their order and places are checked afterwards."""
    start = 0
    for _ in range(count):
        if start + CENTRAL.size > len(content):
            raise _damaged(path, "its directory is cut off")
        fields = CENTRAL.unpack_from(content, start)
        crc, size, length, offset = fields[7], fields[8], fields[10], fields[16]
        raw = content[start + CENTRAL.size : start + CENTRAL.size + length]
        name = raw.decode("ascii", errors="replace")
        if not NAME.fullmatch(name):
            raise _damaged(path, f"it holds a member of the name {name[:80]!r}")
        yield name, _Member(name, offset, size, crc)
        start += CENTRAL.size + length


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _unreadable(path: Path, error: OSError) -> InputFileError:
    return InputFileError(f"{path} cannot be read: {error.strerror}.")


def _damaged(path: Path, why: str) -> InputFileError:
    return InputFileError(f"{path} is damaged or was changed: {why}.")


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise NotOnThisMachineError(
            "Signatures need cryptography: pip install 'aigc-compress[sign]'."
        ) from error
    return ed25519
