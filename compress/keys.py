"""Ed25519 keys in files, as `openssl genpkey -algorithm ed25519` writes them, or plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import InputFileError, NotOnThisMachineError, missing_file

__all__ = ["read_private_key", "read_public_key"]

KEY_BYTES = 32


def read_private_key(path: Path) -> bytes:
    """Return the 32 bytes of a private key: PEM, or plain, or in hex.

    Raises:
        InputFileError: the file is missing or holds no such key.
        NotOnThisMachineError: a PEM file needs the package cryptography.
    """
    return _read(path, "private")


def read_public_key(path: Path) -> bytes:
    """Return the 32 bytes of a public key; see `read_private_key`."""
    return _read(path, "public")


def _read(path: Path, kind: str) -> bytes:
    if not path.is_file():
        raise missing_file(path)
    content = path.read_bytes()
    if content.startswith(b"-----BEGIN"):
        return _of_pem(path, content, kind)
    if len(content) == KEY_BYTES:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InputFileError(
            f"{path} holds no ed25519 {kind} key: PEM, 32 bytes, or 64 hex digits."
        )
    return key


def _of_pem(path: Path, content: bytes, kind: str) -> bytes:
    try:
        from cryptography.hazmat.primitives import serialization
    except ModuleNotFoundError as error:
        raise NotOnThisMachineError(
            "Keys in PEM need cryptography: pip install 'aigc-compress[sign]'."
        ) from error
    try:
        key: Any = (
            serialization.load_pem_private_key(content, None)
            if kind == "private"
            else serialization.load_pem_public_key(content)
        )
        found = key.private_bytes_raw() if kind == "private" else key.public_bytes_raw()
    except (ValueError, TypeError, AttributeError) as error:
        raise InputFileError(f"{path} holds no ed25519 {kind} key: {error}.") from error
    if len(found) != KEY_BYTES:
        raise InputFileError(f"{path} holds no ed25519 {kind} key.")
    return bytes(found)
