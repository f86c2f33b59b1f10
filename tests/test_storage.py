import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_compress.errors import OutputError
from aigc_compress.storage import digest_file, require_writable, write_atomically, write_bytes


def test_a_file_appears_whole_and_alone(tmp_path):
    write_bytes(tmp_path / "a", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize("failure", [OSError("disk"), KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was_there_before(tmp_path, failure):
    (tmp_path / "a").write_bytes(b"before")

    def write(path):
        path.write_bytes(b"half")
        raise failure

    with pytest.raises((OutputError, KeyboardInterrupt)):
        write_atomically(tmp_path / "a", write)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_places_that_cannot_be_written_are_known_before(tmp_path):
    require_writable(tmp_path / "fine")
    for place in (tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(OutputError, match="Cannot write"):
            require_writable(place)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_the_last_of_several_writes_is_what_is_read(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("writes") / "a"
    for content in contents:
        write_bytes(path, content)
    assert path.read_bytes() == contents[-1]
    assert digest_file(path) == hashlib.sha256(contents[-1]).hexdigest()
    assert list(path.parent.iterdir()) == [path]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for refuse in (require_writable, lambda path: write_bytes(path, b"")):
        with pytest.raises(OutputError, match="no plain file"):
            refuse(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_written_file_has_the_rights_that_a_plain_one_would_have(tmp_path):
    (tmp_path / "plain").touch()
    write_bytes(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
