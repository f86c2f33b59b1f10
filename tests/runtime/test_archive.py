"""The archive: any zip program reads it, and no byte of it can be changed unseen."""

import hashlib
import io
import random
import struct
import subprocess
import zipfile

import pytest
from bundles import members_of, write_bundle

from aigc_compress.errors import AigcCompressError, InputFileError, OutputError
from aigc_compress.runtime import load
from aigc_compress.runtime.archive import archive_bytes, open_archive
from aigc_compress.runtime.verifying import verify

MEMBERS = {"a.txt": b"first", "b/c.bin": bytes(range(256)), "empty": b""}


def written(folder, content, name="x.aigc"):
    path = folder / name
    path.write_bytes(content)
    return path


def test_any_zip_program_reads_it(tmp_path):
    content = archive_bytes(MEMBERS)
    with zipfile.ZipFile(io.BytesIO(content)) as read:
        assert read.testzip() is None
        held = {name: read.read(name) for name in read.namelist()}
        dates = {each.date_time for each in read.infolist()}
    sums = held.pop("SHA256SUMS").decode()
    assert held == MEMBERS
    assert dates == {(1980, 1, 1, 0, 0, 0)}
    assert sums.splitlines() == [
        f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in MEMBERS.items()
    ]
    path = written(tmp_path, content)
    subprocess.run(["python3", "-m", "zipfile", "-t", str(path)], check=True, capture_output=True)
    assert members_of(path) == MEMBERS


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../b", "a\\b", ".hidden", "a//b", "", "a\nb", "ä", "a/b/c/d/e/f"]
)
def test_names_that_are_no_plain_paths_are_neither_written_nor_read(tmp_path, name):
    with pytest.raises(OutputError, match="cannot hold"):
        archive_bytes({name: b"x"})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as forged:
        forged.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(InputFileError):
        open_archive(written(tmp_path, stream.getvalue()))


def test_a_zip_of_another_form_is_refused(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as other:
        for name, content in MEMBERS.items():
            other.writestr(name, content)
    with pytest.raises(InputFileError, match="damaged or was changed"):
        open_archive(written(tmp_path, stream.getvalue()))


def test_what_is_no_bundle_is_told_from_a_damaged_one(tmp_path):
    with pytest.raises(InputFileError, match="no bundle"):
        open_archive(written(tmp_path, b"not a zip at all"))
    with pytest.raises(InputFileError, match="cannot be read"):
        open_archive(tmp_path / "missing.aigc")
    with pytest.raises(InputFileError, match="cannot be read"):
        open_archive(tmp_path)


def test_two_members_of_one_name_are_refused(tmp_path):
    content = archive_bytes({"aaaa": b"1", "bbbb": b"2"}).replace(b"bbbb", b"aaaa")
    with pytest.raises(InputFileError, match="not as it was written"):
        open_archive(written(tmp_path, content))


def test_a_count_that_lies_does_not_make_it_read_beyond_the_end(tmp_path):
    content = bytearray(archive_bytes(MEMBERS))
    struct.pack_into("<HH", content, len(content) - 14, 9_999, 9_999)
    with pytest.raises(InputFileError, match="cut off"):
        open_archive(written(tmp_path, bytes(content)))


def mutated(content, rng):
    """Return the content with a byte flipped, cut, doubled, swapped or put in."""
    changed = bytearray(content)
    at = rng.randrange(len(changed))
    kind = rng.choice(["flip", "cut", "truncate", "insert", "swap", "repeat"])
    if kind == "flip":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[at : at + rng.randrange(1, 9)]
    elif kind == "truncate":
        del changed[at:]
    elif kind == "insert":
        changed[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif kind == "swap":
        other = rng.randrange(len(changed))
        changed[at], changed[other] = changed[other], changed[at]
    else:
        changed += changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("signed", [False, True])
def test_no_mutated_bundle_is_verified(tmp_path, signed):
    path, _ = write_bundle(tmp_path, private_key=bytes(range(32)) if signed else None)
    content, rng = path.read_bytes(), random.Random(0)
    before = {*tmp_path.iterdir()}
    for _ in range(300):
        changed = mutated(content, rng)
        if changed == content:
            continue
        path.write_bytes(changed)
        with pytest.raises(AigcCompressError) as refused:
            verify(path)
        assert str(refused.value).count("\n") == 0
        assert {*tmp_path.iterdir()} == before


def test_a_signature_is_of_one_key_and_of_this_content(tmp_path):
    key, other = bytes(range(32)), bytes(range(1, 33))
    plain, _ = write_bundle(tmp_path)
    unsigned = plain.read_bytes()
    path, _ = write_bundle(tmp_path, private_key=key)
    public = bytes.fromhex(verify(path).signed_by)
    assert verify(path, key=public).signed_by == public.hex()
    assert load(path, key=public).variant.name == "fast"

    resigned = archive_bytes(members_of(path), private_key=other)
    with pytest.raises(InputFileError, match="another key"):
        load(written(tmp_path, resigned), key=public)
    with pytest.raises(InputFileError, match="not signed"):
        load(written(tmp_path, unsigned), key=public)

    # The old signature under new content: everything else is right.
    members = members_of(path)
    signature = open_archive(path)._raw("SIGNATURE")
    forged = archive_bytes({**members, "extra": b"more"}, private_key=key)
    real = open_archive(written(tmp_path, forged))._raw("SIGNATURE")
    with pytest.raises(InputFileError):
        verify(written(tmp_path, forged.replace(real, signature)))
