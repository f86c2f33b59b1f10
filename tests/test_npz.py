"""Feeds read from files one sample at a time, whatever the file looks like."""

import pickle
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_compress import npz
from aigc_compress.artifact import TensorSpec
from aigc_compress.cache import digest_feeds
from aigc_compress.engines import check_feeds
from aigc_compress.errors import FeedError, InputFileError
from aigc_compress.npz import read_npz

IMAGE = TensorSpec("x", "float32", ("N", 3, "H", "W"))
COUNT = TensorSpec("n", "int64", ("N",))
INPUTS = (IMAGE, COUNT)
SAVED = {"as it is": np.savez, "compressed": np.savez_compressed}
MIB = 2**20


def arrays_of(count, batch=2, size=2):
    rng = np.random.default_rng(count)
    images = rng.standard_normal((count, batch, 3, size, size)).astype(np.float32)
    return {"n": rng.integers(9, size=(count, batch)), "x": images}


def rows_of(arrays):
    """Return the same sets of feeds without a file, in the order of the model's inputs."""
    return [{"x": x, "n": n} for x, n in zip(arrays["x"], arrays["n"], strict=True)]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        check_feeds(mine, INPUTS)
        assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


@pytest.fixture
def path(tmp_path):
    """Return the file that `arrays_of(5)` are saved in."""
    file = tmp_path / "feeds.npz"
    np.savez(file, **arrays_of(5))
    return file


@given(
    count=st.integers(1, 5),
    batch=st.integers(1, 4),
    save=st.sampled_from([*SAVED.values()]),
    order=st.sampled_from("CF"),
    turned=st.sampled_from([1, 500, npz.TURNED_BYTES]),
)
def test_sample_i_of_a_file_is_row_i_of_its_arrays(
    tmp_path_factory, count, batch, save, order, turned
):
    file, arrays = tmp_path_factory.mktemp("feeds") / "feeds.npz", arrays_of(count, batch)
    save(file, **{name: np.asarray(each, order=order) for name, each in arrays.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz, "TURNED_BYTES", turned)  # one sample at a time, some, all
        feeds = read_npz(file, INPUTS)
    assert_same(feeds, rows_of(arrays))
    assert digest_feeds(feeds) == digest_feeds(rows_of(arrays))


@given(first=st.slices(5), second=st.slices(5))
def test_slices_and_slices_of_slices_are_those_of_a_list(tmp_path_factory, first, second):
    file, rows = tmp_path_factory.mktemp("feeds") / "feeds.npz", rows_of(arrays_of(5))
    np.savez(file, **arrays_of(5))
    feeds = read_npz(file, INPUTS)
    assert_same(feeds[first][second], rows[first][second])
    assert_same([feeds[-1]], rows[-1:])
    with pytest.raises(IndexError):
        feeds[5]


def test_samples_can_be_written_to_as_torch_wants_them(path):
    read_npz(path, INPUTS)[0]["x"][:] = 0


@pytest.mark.parametrize("save", SAVED.values(), ids=SAVED)
@pytest.mark.parametrize("order", "CF")
def test_no_more_than_a_few_samples_are_in_memory(tmp_path, monkeypatch, save, order):
    file, arrays = tmp_path / "feeds.npz", arrays_of(64, batch=1, size=209)
    save(file, **{name: np.asarray(each, order=order) for name, each in arrays.items()})
    assert arrays["x"].nbytes == pytest.approx(32 * MIB, rel=0.01)
    monkeypatch.setattr(npz, "TURNED_BYTES", MIB)
    tracemalloc.start()
    seen = sum(each["n"].size for each in read_npz(file, INPUTS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 64
    assert peak < 8 * MIB


@pytest.mark.parametrize("save", SAVED.values(), ids=SAVED)
@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_one_damaged_byte_is_found_when_the_file_is_opened(tmp_path, save, place):
    file = tmp_path / "feeds.npz"
    save(file, **arrays_of(50))
    content = bytearray(file.read_bytes())
    content[int(place * content.index(b"PK\x01\x02"))] ^= 1  # before the list of members
    file.write_bytes(content)
    with pytest.raises(InputFileError, match=r"feeds\.npz is not an \.npz file of plain arrays"):
        read_npz(file, INPUTS)


CHANGES = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"more"),
    "other numbers": lambda file: np.savez(file, **arrays_of(6)),
    "emptied": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_in_use_is_told(path, change):
    feeds = read_npz(path, INPUTS)
    assert_same(feeds[:1], rows_of(arrays_of(5))[:1])
    change(path)
    with pytest.raises(InputFileError, match=r"feeds\.npz changed while it was in use"):
        feeds[1]


def test_a_file_that_is_replaced_or_removed_stays_readable(path, tmp_path):
    feeds = read_npz(path, INPUTS)
    np.savez(tmp_path / "other.npz", **arrays_of(6))
    (tmp_path / "other.npz").replace(path)
    assert_same(feeds, rows_of(arrays_of(5)))
    path.unlink()
    assert_same(feeds, rows_of(arrays_of(5)))


def test_feeds_reach_another_process_as_their_file(path, monkeypatch, tmp_path):
    monkeypatch.chdir(path.parent)
    content = pickle.dumps(read_npz(path.relative_to(path.parent), INPUTS)[1:4:2])
    assert len(content) < 1000
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_same(pickle.loads(content), rows_of(arrays_of(5))[1:4:2])
    shutil.copy(path, "kept.npz")
    path.unlink()
    with pytest.raises(InputFileError, match="There is no file"):
        pickle.loads(content)
    shutil.copy("kept.npz", path)  # its time is another
    with pytest.raises(InputFileError, match="changed while it was in use"):
        pickle.loads(content)


@pytest.mark.parametrize("order", ["C", "F"])
def test_samples_without_the_batch_axis_get_it(tmp_path, order):
    pictures = np.random.default_rng(0).standard_normal((4, 3, 2, 5)).astype(np.float32)
    path = tmp_path / "feeds.npz"
    np.savez(path, x=np.asarray(pictures, order=order))

    feeds = read_npz(path, (IMAGE,))

    for sample, picture in zip(feeds, pictures, strict=True):
        check_feeds(sample, (IMAGE,))
        np.testing.assert_array_equal(sample["x"], picture[None])


def test_samples_that_lack_more_than_the_batch_axis_are_refused(tmp_path):
    np.savez(tmp_path / "feeds.npz", x=np.zeros((4, 2, 5), np.float32))
    (sample,) = read_npz(tmp_path / "feeds.npz", (IMAGE,))[:1]

    with pytest.raises(FeedError, match=r"needs float32 \['N', 3, 'H', 'W'\]"):
        check_feeds(sample, (IMAGE,))
