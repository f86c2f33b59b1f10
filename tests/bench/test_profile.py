import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from aigc_compress.bench.counting import count_costs, total_cost
from aigc_compress.bench.profile import (
    Layer,
    LayerTime,
    costliest_float,
    overhead,
    profile_layers,
    read_times,
)
from aigc_compress.bench.roofline import Peaks
from aigc_compress.errors import PassError

PEAKS = Peaks(float_macs=1e9, integer_macs=2e9, bandwidths=((1 << 30, 1e9),))


def parsed(text):
    return onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> ' + text)


def convolutions():
    """Two padded 3x3 convolutions of 8 and 16 channels on 6x6, the first with a Relu."""
    text = "g (float[1,4,6,6] x) => (float[1,16,6,6] y) <float[8,4,3,3] v = {@}, "
    text += "float[16,8,3,3] w = {#}> { a = Conv<pads = [1,1,1,1]>(x, v)  b = Relu(a) "
    text += "y = Conv<pads = [1,1,1,1]>(b, w) }"
    values = {"@": 8 * 4 * 9, "#": 16 * 8 * 9}
    for mark, count in values.items():
        text = text.replace(mark, ",".join(["0.5"] * count))
    return parsed(text), {"x": np.ones((1, 4, 6, 6), np.float32)}


def node(name, ts, dur, op="Conv", kind="float"):
    args = {"op_name": op, "output_type_shape": [{kind: [1]}]}
    event = {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}
    return event


def run(ts, dur):
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur}


def layer(name, ms, share, role):
    return Layer(name, "Conv", ms, share, 0, 0, False, role)


def test_times_are_told_per_call_without_the_first_ones():
    events = [run(100, 50), run(200, 50), run(300, 50)]
    events += [node("a", 101, 30), node("a", 201, 10), node("a", 301, 20)]
    assert read_times(events, dropped=1) == {"a": LayerTime("Conv", (0.010, 0.020), "float", 1)}


def test_a_node_that_runs_several_times_in_a_call_is_summed():
    events = [run(0, 50), node("a", 1, 3), node("a", 10, 4), node("a", 20, 5)]
    assert read_times(events, dropped=0)["a"].calls_ms == (pytest.approx(0.012),)


def test_control_flow_is_counted_without_the_nodes_inside_it():
    inside = [node("body", 12, 5), node("body", 18, 7)]
    events = [run(0, 90), node("loop", 10, 20, op="Loop"), *inside, node("after", 31, 2)]
    found = {name: time.calls_ms[0] for name, time in read_times(events, dropped=0).items()}
    assert found == {
        "loop": pytest.approx(0.008),
        "body": pytest.approx(0.012),
        "after": pytest.approx(0.002),
    }


def test_events_before_the_first_call_are_left_out():
    assert read_times([node("a", 1, 9), run(10, 5), node("b", 11, 1)], dropped=0).keys() == {"b"}


def test_layers_carry_every_mac_of_the_graph():
    model, feeds = convolutions()
    layers = profile_layers(model, feeds, calls=3, peaks=PEAKS)
    by_hand = 36 * 9 * (8 * 4 + 16 * 8)
    assert sum(each.macs for each in layers) == by_hand
    assert by_hand == total_cost(count_costs(model, feeds))["macs"]
    assert sum(each.weight_bytes for each in layers) == 4 * 9 * (8 * 4 + 16 * 8)
    assert sum(each.share for each in layers) == pytest.approx(1)
    assert all(each.ms >= 0 for each in layers)


def test_what_exists_in_the_session_alone_has_no_macs():
    model, feeds = convolutions()
    for each in profile_layers(model, feeds, calls=3, peaks=PEAKS):
        assert (each.macs > 0) == (each.op in ("Conv", "FusedConv"))


def test_the_limit_of_a_layer_is_its_arithmetic_or_its_weights():
    model, feeds = convolutions()
    first, *_ = [each for each in profile_layers(model, feeds, calls=3, peaks=PEAKS) if each.macs]
    macs, weights = 36 * 9 * 8 * 4, 4 * 9 * 8 * 4
    assert first.limit_ms == pytest.approx(1e3 * max(macs / 1e9, weights / 1e9))
    limits = {"threads": 1, "working_set_bytes": weights}
    slow, short = (replace(first, ms=ms).under(PEAKS, **limits) for ms in (0.5, 0.001))
    assert slow.efficiency == pytest.approx(first.limit_ms / 0.5)
    assert short.efficiency is None  # the profiler's clock ticks in microseconds


def test_integer_and_border_operators_are_told_apart():
    text = "g (float[3,8] x) => (float[3,4] y) <int8[8,4] w = {@}, float s = {0.5}, uint8 z = {0}> "
    text += "{ q, a, p = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, p)  "
    text += "f = Cast<to = 1>(i)  y = Mul(f, s) }"
    model = parsed(text.replace("@", ",".join(["1"] * 32)).replace(", uint8 z = {0}", ""))
    layers = profile_layers(model, {"x": np.ones((3, 8), np.float32)}, calls=3, peaks=PEAKS)
    roles = {each.op: each.role for each in layers}
    assert roles["DynamicQuantizeLinear"] == "border"
    assert {role for op, role in roles.items() if "Integer" in op} == {"integer"}
    assert roles.get("Cast", "border") == "border"
    assert sum(each.macs for each in layers if each.is_integer) == 3 * 8 * 4


def test_a_graph_that_refuses_its_feeds_is_one_error_of_ours():
    model, _ = convolutions()
    with pytest.raises(PassError, match="does not run"):
        profile_layers(model, {"x": np.ones((1, 3, 6, 6), np.float32)}, peaks=PEAKS)


def test_profiling_leaves_no_file_and_no_name_in_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, feeds = convolutions()
    before = model.SerializeToString()
    profile_layers(model, feeds, calls=3, peaks=PEAKS)
    assert list(tmp_path.iterdir()) == []
    assert model.SerializeToString() == before


def test_overhead_adds_shares_by_role():
    layers = [
        layer("a", 1, 0.25, "float"),
        layer("b", 2, 0.5, "float"),
        layer("c", 1, 0.2, "border"),
    ]
    layers += [layer("d", 0.2, 0.05, "reorder")]
    wanted = {"border": 0.2, "reorder": 0.05, "float": 0.75, "integer": 0, "other": 0}
    assert overhead(layers) == pytest.approx(wanted)


def test_the_costliest_float_layers_come_longest_first():
    layers = [layer("a", 1, 0, "float"), layer("b", 5, 0, "integer"), layer("c", 3, 0, "float")]
    layers += [layer("d", 2, 0, "float")]
    assert [each.name for each in costliest_float(layers, 2)] == ["c", "d"]


def test_a_layer_is_plain_json():
    text = json.dumps(layer("a", 1.5, 0.5, "float").document())
    assert json.loads(text)["ms"] == 1.5
