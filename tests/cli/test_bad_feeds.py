"""Calibration files that do not fit the model or are no arrays."""

import io
import zipfile

import numpy as np
import pytest
from hostile import Bomb

GOOD = {"x": np.zeros((2, 4, 3), np.float32), "n": np.zeros((2, 4), np.int64)}


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": GOOD["x"]}, "one array per input"),
        ({**GOOD, "z": GOOD["x"]}, "one array per input"),
        ({**GOOD, "x": GOOD["x"].astype(np.float64)}, "float64"),
        ({**GOOD, "x": GOOD["x"][..., :2]}, "[4, 2]"),
        ({**GOOD, "x": GOOD["x"][:1]}, "same number of samples"),
        ({"x": GOOD["x"][:0], "n": GOOD["n"][:0]}, "samples"),
        ({**GOOD, "n": GOOD["n"][:, :3]}, "N=4"),
    ],
)
def test_calibration_that_does_not_fit_is_explained(refuse, scores_onnx, arrays, told):
    np.savez("feeds.npz", **arrays)
    message = refuse("quantize", scores_onnx, "--calibration", "feeds.npz", "-o", "o.onnx", code=2)
    assert told in message


def npz(**members):
    """Return a zip of members as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


X = npy(GOOD["x"])
NOT_FEEDS = {
    "missing": None,
    "text": b"no zip",
    "empty": b"",
    "a single array": X,
    "cut off": npz(x_npy=X, n_npy=X)[:100],
    "members that are no arrays": npz(x="text", n="text"),
    "a damaged header": npz(x_npy=X[:10] + b"{'descr': broken" + bytes(60), n_npy=X),
    "an empty member": npz(x_npy=b"", n_npy=X),
    "a member cut off": npz(x_npy=X[:-8], n_npy=X),
}


@pytest.mark.parametrize("content", NOT_FEEDS.values(), ids=NOT_FEEDS)
def test_calibration_that_is_no_npz_is_refused(refuse, scores_onnx, workplace, content):
    if content is not None:
        (workplace / "feeds.npz").write_bytes(content)
    refuse("quantize", scores_onnx, "--calibration", "feeds.npz", "-o", "o.onnx", code=2)


def test_calibration_with_pickled_objects_is_refused_unread(refuse, scores_onnx, workplace):
    marker = workplace / "it-ran"
    np.savez("feeds.npz", x=np.array([Bomb(marker)], dtype=object), n=GOOD["n"])
    refuse("quantize", scores_onnx, "--calibration", "feeds.npz", "-o", "o.onnx", code=2)
    assert not marker.exists()
