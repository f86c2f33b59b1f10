import numpy as np
import onnx
import pytest

from aigc_compress.bench.counting import count_costs, total_cost
from aigc_compress.bench.roofline import Limit, Peaks, limit_of
from aigc_compress.loading import load_artifact
from aigc_compress.workload import FeedOptions, make_workload


def parsed(text):
    return onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> ' + text)


def macs(text, **feeds):
    return total_cost(count_costs(parsed(text), feeds))["macs"]


def floats(*shape):
    return np.zeros(shape, np.float32)


def test_a_convolution_counts_every_tap_of_every_output():
    text = "g (float[1,6,8,8] x, float[4,3,3,3] w) => (float[1,4,4,4] y) "
    text += "{ y = Conv<group = 2, strides = [2,2], pads = [1,1,1,1]>(x, w) }"
    assert macs(text, x=floats(1, 6, 8, 8), w=floats(4, 3, 3, 3)) == 4 * 4 * 4 * 3 * 9


def test_a_transposed_convolution_counts_every_tap_of_every_input():
    text = "g (float[1,6,5,5] x, float[6,4,3,3] w) => (float[1,4,a,b] y) "
    text += "{ y = ConvTranspose<strides = [2,2]>(x, w) }"
    assert macs(text, x=floats(1, 6, 5, 5), w=floats(6, 4, 3, 3)) == 25 * 6 * 4 * 9


def test_products_of_matrices_count_rows_times_columns_times_depth():
    text = "g (float[2,3,4] x, float[4,5] w) => (float[2,3,5] y) { y = MatMul(x, w) }"
    assert macs(text, x=floats(2, 3, 4), w=floats(4, 5)) == 2 * 3 * 4 * 5
    text = "g (float[4,3] x, float[5,4] w) => (float[3,5] y) "
    text += "{ y = Gemm<transA = 1, transB = 1>(x, w) }"
    assert macs(text, x=floats(4, 3), w=floats(5, 4)) == 3 * 4 * 5


def test_an_lstm_counts_four_gates_of_inputs_and_state_per_step():
    text = "g (float[7,2,3] x, float[1,20,3] w, float[1,20,5] r) => (float[7,1,2,5] y) "
    text += "{ y = LSTM<hidden_size = 5>(x, w, r) }"
    assert macs(text, x=floats(7, 2, 3), w=floats(1, 20, 3), r=floats(1, 20, 5)) == 7 * 2 * 20 * 8


def test_elementwise_operators_count_bytes_alone():
    model = parsed("g (float[2,8] x) => (float[2,8] y) { y = Relu(x) }")
    assert total_cost(count_costs(model, {"x": floats(2, 8)})) == {
        "macs": 0,
        "integer_macs": 0,
        "weight_bytes": 0,
        "activation_bytes": 2 * 64,
    }


def test_quantized_products_count_as_integer():
    text = "g (uint8[3,4] x) => (int32[3,5] y) <int8[4,5] w = {@}> { y = MatMulInteger(x, w) }"
    text = text.replace("@", ",".join("1" * 20))
    cost = total_cost(count_costs(parsed(text), {"x": np.zeros((3, 4), np.uint8)}))
    assert cost["macs"] == cost["integer_macs"] == 60
    assert cost["weight_bytes"] == 20


def test_the_limit_is_the_larger_of_compute_and_weights():
    peaks = Peaks(float_macs=1e9, integer_macs=4e9, bandwidths=((1 << 16, 1e10), (1 << 30, 1e9)))
    compute = {"macs": 5_000_000, "integer_macs": 4_000_000, "weight_bytes": 1000}
    assert limit_of(compute, peaks) == Limit(pytest.approx(1.0 + 1.0), "compute")
    weights = {"macs": 1000, "integer_macs": 0, "weight_bytes": 1 << 20}
    assert limit_of(weights, peaks) == Limit(pytest.approx(1e3 * 2**20 / 1e9), "weights")


def test_the_residual_reference_agrees_with_a_count_by_hand():
    from aigc_compress.api import to_onnx

    artifact = load_artifact("cnn")
    workload = make_workload(artifact, FeedOptions())
    graph = to_onnx(artifact, workload)
    feeds = workload.timing_feeds(batch=1, length=1, seed=0)
    found = total_cost(count_costs(graph.payload, feeds))["macs"]
    stem = 28 * 28 * 32 * 9
    first = 2 * 28 * 28 * 32 * 32 * 9
    second = 14 * 14 * (64 * 32 * 9 + 64 * 32 + 3 * 64 * 64 * 9)
    third = 7 * 7 * (128 * 64 * 9 + 128 * 64 + 5 * 128 * 128 * 9)
    assert found == pytest.approx(stem + first + second + third + 128 * 10, rel=0.001)
