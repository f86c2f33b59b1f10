import numpy as np
import pytest

from aigc_compress.errors import InputFileError
from aigc_compress.models import data


def test_embedded_splits_are_balanced():
    assert np.bincount(data.images("test").labels).tolist() == [1000] * 10
    assert np.bincount(data.images("validation").labels).tolist() == [500] * 10
    assert np.bincount(data.calibration_images().labels).tolist() == [100] * 10


def test_no_image_stands_in_two_splits():
    # A few pictures of the published set are exact copies of one another, so ask for few, not none.
    splits = [data.images("test"), data.images("validation"), data.calibration_images()]
    seen = [{image.tobytes() for image in split.pixels} for split in splits]
    for i, first in enumerate(seen):
        for second in seen[i + 1 :]:
            assert len(first & second) <= 2


def test_text_splits_cover_the_whole_text_without_overlap():
    chapters = {s: data.text(s).strip("\n").split("\n\n") for s in ("train", "validation", "test")}
    whole = data.embedded_text().strip("\n").split("\n\n")
    assert len(whole) == 1189
    assert sorted(c for each in chapters.values() for c in each) == sorted(whole)
    assert len(chapters["test"]) == len(range(19, 1189, 20))
    assert chapters["validation"][0] == whole[9]


def test_pixels_survive_the_way_to_floats_and_back():
    pixels = np.arange(256, dtype=np.uint8).repeat(49).reshape(16, 28, 28)
    there = data.to_unit_range(pixels)
    assert there.min() == -1
    assert there.max() == 1
    assert np.array_equal(data.to_pixels(there), pixels)


def test_a_folder_without_the_training_files_is_refused(tmp_path):
    with pytest.raises(InputFileError, match="train-images"):
        data.find_training_images(tmp_path)


def test_a_damaged_training_file_is_refused_by_its_digest(tmp_path):
    for name in data.TRAINING_FILES:
        (tmp_path / name).write_bytes(b"not the published file")
    with pytest.raises(InputFileError, match="SHA-256"):
        data.find_training_images(tmp_path)
