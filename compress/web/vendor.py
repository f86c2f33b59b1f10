"""ONNX Runtime Web, from the user's npm registry, checked against the digest that is pinned here.

The package is fetched when a site is written and kept in the cache. Of its 140 MB a site needs
three files: the build for WebAssembly alone, its loader, and the machine code.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from aigc_compress.cache import cache_root
from aigc_compress.errors import InputFileError, NotOnThisMachineError, OutputError
from aigc_compress.storage import write_bytes

__all__ = ["PACKAGE", "VERSION", "runtime_files"]

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = (
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4r"
    "KY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
# Every web server knows `.js`; some send `.mjs` as a download, which a browser does not run.
FILES: Mapping[str, str] = {
    "vendor/ort.js": "package/dist/ort.wasm.min.mjs",
    "vendor/ort-loader.js": "package/dist/ort-wasm-simd-threaded.mjs",
    "vendor/ort.wasm": "package/dist/ort-wasm-simd-threaded.wasm",
}
MOST_BYTES = 64 * 2**20  # of one file
SOURCE_MAP = b"//# sourceMappingURL="
PATIENCE_S = 600


def runtime_files() -> dict[str, bytes]:
    """Return the files of ONNX Runtime Web by their names in a site.

    Raises:
        NotOnThisMachineError: npm is missing, or cannot fetch the package.
        InputFileError: what npm fetched is not the package of the pinned digest.
    """
    return _unpacked(_package())


def _package() -> bytes:
    """Return the package's archive, from the cache or from npm."""
    kept = cache_root() / "web" / f"{PACKAGE}-{VERSION}.tgz"
    if kept.is_file():
        content = kept.read_bytes()
        if _integrity(content) == INTEGRITY:
            return content
    content = _fetched()
    if _integrity(content) != INTEGRITY:
        raise InputFileError(
            f"npm gave another {PACKAGE} {VERSION} than was published: its digest is"
            f" {_integrity(content)}, and must be {INTEGRITY}."
        )
    _keep(kept, content)
    return content


def _fetched() -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise NotOnThisMachineError(
            f"A site needs {PACKAGE} {VERSION}, which npm fetches. Install Node.js with npm"
            " (Debian: apt-get install npm)."
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--ignore-scripts", f"{PACKAGE}@{VERSION}"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _unfetched(str(error)) from error
        found = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not found:
            raise _unfetched(done.stderr.strip().splitlines()[0] if done.stderr.strip() else "")
        return found[0].read_bytes()


def _unfetched(why: str) -> NotOnThisMachineError:
    told = f" ({why})" if why else ""
    return NotOnThisMachineError(
        f"npm could not fetch {PACKAGE}@{VERSION}{told}. Check that"
        f" `npm view {PACKAGE}@{VERSION}` finds it."
    )


def _integrity(content: bytes) -> str:
    """Return the digest in npm's words (Subresource Integrity)."""
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def _keep(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except (OSError, OutputError):  # no cache is no reason to fail
        return


def _unpacked(archive: bytes) -> dict[str, bytes]:
    """Return the needed files; nothing of the archive is written under a name of its own."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
            return {name: _plain(_member(opened, path)) for name, path in FILES.items()}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputFileError(f"{PACKAGE} {VERSION} cannot be unpacked: {error}.") from error


def _member(opened: tarfile.TarFile, path: str) -> bytes:
    try:
        file = opened.extractfile(path)
    except KeyError as error:
        raise InputFileError(f"{PACKAGE} {VERSION} has no file {path}.") from error
    content = b"" if file is None else file.read(MOST_BYTES + 1)
    if not 0 < len(content) <= MOST_BYTES:
        raise InputFileError(f"{path} of {PACKAGE} {VERSION} is no file of a usual size.")
    return content


def _plain(content: bytes) -> bytes:
    """Return a file without the address of a source map, which a site does not hold."""
    at = content.rfind(SOURCE_MAP)
    return content[:at] if at >= 0 and b"\n" not in content[at:].rstrip() else content
