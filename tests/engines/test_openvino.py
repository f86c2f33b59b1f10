import numpy as np
import onnx
import pytest
from conftest import graph

from aigc_compress.artifact import Artifact
from aigc_compress.engines import get_engine
from aigc_compress.engines.openvino import OpenVinoEngine
from aigc_compress.errors import NotOnThisMachineError, PassError

needs_openvino = pytest.mark.skipif(
    not OpenVinoEngine().availability().is_available,
    reason="openvino is not installed: pip install 'aigc-compress[openvino]'",
)


def two_outputs():
    text = "g (float[N, 2] x, float[N, 2] z) => (float[N, 2] sum, float[N, 2] twice) "
    text += "<float c = {2}> { twice = Mul(x, c)  sum = Add(x, z) }"
    return Artifact("onnx", graph(text))


@needs_openvino
@pytest.mark.parametrize("batch", [1, 4, 2])
def test_outputs_come_by_name_at_any_batch_size(batch):
    x = np.arange(2 * batch, dtype=np.float32).reshape(batch, 2)
    outputs = get_engine("openvino").load(two_outputs(), threads=1).run({"x": x, "z": x * 3})
    assert list(outputs) == ["sum", "twice"]
    np.testing.assert_allclose(outputs["sum"], x * 4)
    np.testing.assert_allclose(outputs["twice"], x * 2)


@needs_openvino
def test_a_result_stays_as_it_is_when_the_next_call_comes():
    runner = get_engine("openvino").load(two_outputs(), threads=1)
    ones = np.ones((1, 2), np.float32)
    first = runner.run({"x": ones, "z": ones})
    runner.run({"x": ones * 5, "z": ones})
    np.testing.assert_array_equal(first["sum"], [[2, 2]])


@needs_openvino
def test_a_graph_that_openvino_does_not_know_is_one_error_of_ours():
    node = onnx.helper.make_node("Nothing", ["x"], ["y"], domain="nowhere")
    floats = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(name, floats, [1]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]))
    with pytest.raises(PassError, match="does not load") as error:
        get_engine("openvino").load(Artifact("onnx", model), threads=1)
    assert "\n" not in str(error.value)


@needs_openvino
def test_a_feed_of_another_name_is_one_error_of_ours():
    runner = get_engine("openvino").load(two_outputs(), threads=1)
    with pytest.raises(PassError, match="does not run") as error:
        runner.run({"unknown": np.ones((1, 2), np.float32)})
    assert "\n" not in str(error.value)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotOnThisMachineError, match=r"pip install 'aigc-compress\[openvino\]'"):
        get_engine("openvino")


@needs_openvino
def test_an_output_keeps_its_name_where_what_makes_it_is_joined_with_another_node():
    text = "g (float[N, 2, 4] x) => (float[N, 4, 2] late) "
    text += "{ early = Transpose<perm = [0, 2, 1]>(x)  late = Tanh(early) }"
    x = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    outputs = get_engine("openvino").load(Artifact("onnx", graph(text)), threads=1).run({"x": x})
    np.testing.assert_allclose(outputs["late"], np.tanh(x.transpose(0, 2, 1)), rtol=1e-5)
