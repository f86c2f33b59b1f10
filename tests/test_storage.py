import pytest

from aigc_compress.errors import OutputError
from aigc_compress.storage import require_writable, write_atomically, write_bytes


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
