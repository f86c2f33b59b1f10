"""ONNX Runtime Web from npm: fetched once, checked, unpacked by name."""

import io
import tarfile

import pytest

from aigc_compress.errors import InputFileError, NotOnThisMachineError
from aigc_compress.web import vendor


def test_without_npm_the_message_says_what_to_install(workplace, monkeypatch):
    monkeypatch.setenv("AIGC_COMPRESS_CACHE", str(workplace / "cache"))
    monkeypatch.setattr(vendor.shutil, "which", lambda name: None)
    with pytest.raises(NotOnThisMachineError, match="apt-get install npm"):
        vendor.runtime_files()


def fake_npm(folder, script, monkeypatch):
    monkeypatch.setenv("AIGC_COMPRESS_CACHE", str(folder / "cache"))
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setattr(vendor.shutil, "which", lambda name: str(npm))


@pytest.mark.parametrize(
    ("script", "error", "told"),
    [
        ("echo another > x.tgz", InputFileError, "another onnxruntime-web"),
        ("echo 'npm error network' >&2; exit 1", NotOnThisMachineError, "npm error network"),
        ("exit 0", NotOnThisMachineError, "could not fetch"),
    ],
)
def test_what_npm_gives_is_checked(workplace, monkeypatch, script, error, told):
    fake_npm(workplace, script, monkeypatch)
    with pytest.raises(error, match=told):
        vendor.runtime_files()
    assert not (workplace / "cache").exists()


def packed_runtime(**changed):
    """Return an archive like npm's, with other content."""
    files = {path: b"code\n//# sourceMappingURL=x.map\n" for path in vendor.FILES.values()}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for path, content in {**files, "../evil": b"x", **changed}.items():
            if content is not None:
                head = tarfile.TarInfo(path)
                head.size = len(content)
                archive.addfile(head, io.BytesIO(content))
    return made.getvalue()


def test_the_package_is_fetched_once_and_unpacked_by_name(workplace, monkeypatch):
    archive = packed_runtime()
    (workplace / "right").write_bytes(archive)
    fake_npm(workplace, f"cp {workplace}/right x.tgz; echo x >> {workplace}/calls", monkeypatch)
    monkeypatch.setattr(vendor, "INTEGRITY", vendor._integrity(archive))
    for _ in range(2):
        assert vendor.runtime_files() == dict.fromkeys(vendor.FILES, b"code\n")
    assert (workplace / "calls").read_text() == "x\n"
    (kept,) = (workplace / "cache/web").iterdir()
    kept.write_bytes(b"damaged")
    assert vendor.runtime_files() == dict.fromkeys(vendor.FILES, b"code\n")
    assert (workplace / "calls").read_text() == "x\nx\n"


@pytest.mark.parametrize("content", [None, b""])
def test_a_package_without_a_needed_file_is_refused(content):
    changed = packed_runtime(**{vendor.FILES["vendor/ort.wasm"]: content})
    with pytest.raises(InputFileError, match=r"ort-wasm-simd-threaded\.wasm"):
        vendor._unpacked(changed)
    with pytest.raises(InputFileError, match="cannot be unpacked"):
        vendor._unpacked(changed[:50])
