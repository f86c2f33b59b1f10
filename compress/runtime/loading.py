"""Load whatever the toolkit wrote: a bundle or a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aigc_compress.errors import UsageError

from .archive import SUFFIX
from .bundle import open_bundle
from .kinds import kind_of
from .model import load_model

__all__ = ["load"]


def load(
    path: str | Path, *, threads: int = 1, key: bytes | None = None, variant: str | None = None
) -> Any:
    """Load a bundle, or an `.onnx` or `.onnx.xz` file, on the CPU.

    Args:
        path: the file.
        threads: intra-op threads.
        key: 32 bytes of the ed25519 public key that a bundle must be signed with; None: any or
            none.
        variant: of the bundle; None: the first that fits this machine.

    Returns:
        Of a bundle `Images`, `Classifier`, `Writer` or, where it names no kind, `Bundle`; of a
        graph `Model`.

    Raises:
        InputFileError: the file is missing, damaged, hostile, or not signed by that key.
        UsageError: there is no such variant, or a graph was to have one or a signature.
        NotOnThisMachineError: no variant gives here what it gave where the bundle was made, or a
            signature cannot be checked.

    A variant that is not used is warned of (`UserWarning`).
    """
    if str(path).endswith(SUFFIX):
        archive, manifest = open_bundle(path, key=key)
        return kind_of(archive, manifest, threads=threads, variant=variant)
    if key is not None or variant is not None:
        raise UsageError(f"Only a bundle, *{SUFFIX}, is signed and has variants.")
    return load_model(Path(path), threads=threads)
