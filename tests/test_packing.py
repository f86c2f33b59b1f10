"""Graphs for storage: packed without loss, and with few values per tensor within the budget."""

import lzma

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_compress.artifact import read_onnx
from aigc_compress.errors import InputFileError, PassError, UsageError
from aigc_compress.packed import SUFFIX, is_packed, packed, unpacked
from aigc_compress.packing import pack
from aigc_compress.passes.share import shared
from aigc_compress.runtime import load

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, w)  y = Relu(h) }"""


@pytest.fixture
def graph(tmp_path):
    model = onnx.parser.parse_model(TEXT)
    weight = np.random.default_rng(0).normal(0, 0.1, (64, 64)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "g.onnx"
    onnx.save(model, path)
    return path


def test_a_packed_graph_is_the_same_graph_everywhere(graph, tmp_path):
    path = tmp_path / ("g" + SUFFIX)
    result = pack(graph, path)
    assert result.lossless == result.size_bytes == path.stat().st_size < result.plain
    before, after = read_onnx(graph).payload, read_onnx(path).payload
    assert before.graph == after.graph
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    np.testing.assert_array_equal(load(path)(x)["y"], load(graph)(x)["y"])
    assert lzma.decompress(path.read_bytes()) == unpacked(path)
    assert packed(unpacked(path)) == path.read_bytes()


def test_fewer_values_are_tried_until_the_budget_holds(graph, tmp_path):
    path = tmp_path / ("g" + SUFFIX)
    result = pack(graph, path, values=(2, 4, 64))
    assert (result.values, result.refused) == (64, (2, 4))
    assert result.judgement.within
    assert result.size_bytes < result.lossless / 3
    (weight,) = read_onnx(path).payload.graph.initializer
    assert len(np.unique(onnx.numpy_helper.to_array(weight))) <= 64
    other = tmp_path / ("h" + SUFFIX)
    with pytest.raises(PassError, match="outside the budget with 2 values"):
        pack(graph, other, values=(2,))
    assert not other.exists()
    with pytest.raises(UsageError, match="must end in"):
        pack(graph, tmp_path / "g.xz")


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=200),
    st.integers(2, 40),
    st.sampled_from(["float32", "int8", "uint8"]),
)
def test_shared_values_are_few_and_near(numbers, values, dtype):
    limits = (-128, 127) if dtype == "int8" else (0, 255) if dtype == "uint8" else (-1e3, 1e3)
    weights = np.clip(np.array(numbers), *limits).astype(dtype)
    fewer = shared(weights, values)
    assert fewer.dtype == weights.dtype
    assert fewer.shape == weights.shape
    assert len(np.unique(fewer)) <= values
    spread = float(weights.max()) - float(weights.min())
    steps = spread / (values - 1) if values > 1 else spread
    worst = np.abs(fewer.astype(float) - weights.astype(float)).max()
    assert worst <= spread + 1  # a centroid is a mean of weights, rounded where they are integers
    mean = np.square(fewer.astype(float) - weights.astype(float)).mean()
    assert mean <= np.square(steps / 2 + 0.5 * (dtype != "float32")) + 1e-3


@pytest.mark.parametrize("harm", ["cut", "flipped", "text", "plain"])
def test_damaged_files_are_refused_in_one_line(graph, tmp_path, harm):
    path = tmp_path / ("g" + SUFFIX)
    pack(graph, path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    harmed = {"cut": whole[:-9], "flipped": flipped, "text": b"hello", "plain": packed(b"no graph")}
    path.write_bytes(harmed[harm])
    with pytest.raises(InputFileError, match=str(path)):
        read_onnx(path)
    with pytest.raises(InputFileError, match=str(path)):
        load(path)
    assert is_packed(path)


def test_the_verb_tells_sizes(run_cli, graph, tmp_path):
    done = run_cli("pack", str(graph), "--values", "64", "-o", str(tmp_path / "g.onnx.xz"))
    assert done.code == 0, done.stderr
    assert "every bit kept" in done.stdout
    for wrong in ("1", "300", "few"):
        assert run_cli("pack", str(graph), "--values", wrong).code == 2
    assert run_cli("pack", str(graph), "--max-drop", "1%").code == 2
    assert run_cli("info", str(tmp_path / "g.onnx.xz")).code == 0
