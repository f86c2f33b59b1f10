"""Which nodes are integer, which are not, and why: on graphs small enough to know."""

import numpy as np
import pytest
from conftest import graph

from aigc_compress.artifact import Artifact
from aigc_compress.bench.meter import QuickMeter
from aigc_compress.cli.quantize import show_nodes
from aigc_compress.engines.ort import optimized
from aigc_compress.gate import Finding
from aigc_compress.meter import NodeTime
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.operators import all_nodes
from aigc_compress.passes.quantize import QuantizePass
from aigc_compress.why_not import NodeReport, choice_of, why_not

FEEDS = tuple(
    {"x": np.random.default_rng(seed).normal(size=(1, 4, 8, 8)).astype(np.float32)}
    for seed in range(4)
)
CHOICE = "somebody chose so"


class EveryNode:
    """Tells 1 ms for every node of the optimized graph, and 3 ms for those that are named."""

    def __init__(self, *slow):
        self._slow = slow

    def profile(self, artifact, feeds):
        nodes = list(all_nodes(optimized(artifact.payload).graph))
        times = {n.output[0]: 3.0 if n.op_type in self._slow else 1.0 for n in nodes}
        return {name: NodeTime("", ms, 1) for name, ms in times.items()}


def net(body, inputs="float[1,4,8,8] x", **shapes):
    """Return a graph of these nodes with a random constant for every shape."""
    rng = np.random.default_rng(0)
    constants = []
    for name, shape in shapes.items():
        values = ", ".join(f"{value:.6f}" for value in rng.normal(size=int(np.prod(shape))))
        constants.append(f"float[{', '.join(map(str, shape))}] {name} = {{{values}}}")
    text = f"g ({inputs}) => (float[N, M, H, W] y) <{', '.join(constants)}> {{ {body} }}"
    model = graph(text)
    for node in all_nodes(model.graph):
        node.name = node.output[0]
    return Artifact("onnx", model)


def quantized(artifact, **settings):
    settings = {"reduce_range": True, **settings}
    context = Context(FEEDS[:2], FEEDS)
    return QuantizePass().run(artifact, QuantizeConfig(**settings), context)


def rows(artifact, meter=None):
    found = why_not(artifact, meter or EveryNode(), FEEDS[0], choice=CHOICE)
    return {row.name: row for row in found}


def tanh_net():
    weights = {"v": (4, 4, 3, 3), "w": (4, 4, 3, 3)}
    return net("a = Conv(x, v)  b = Tanh(a)  y = Conv(b, w)", **weights)


def branching_net():
    body = """k = ReduceMean<axes = [0, 1, 2, 3], keepdims = 0>(x)
        zero = Constant<value = float {0}>()
        is_big = Greater(k, zero)
        a = Conv(x, v)
        c = Softplus(a)
        y = If (is_big) <
            then_branch = one () => (float[N, M, H, W] p) { q = Conv(c, w)  p = Relu(q) },
            else_branch = two () => (float[N, M, H, W] r) { r = Tanh(c) }
        >"""
    return net(body, v=(4, 4, 3, 3), w=(4, 4, 3, 3))


def test_what_has_no_integer_kernel_is_named_with_the_borders_that_it_costs():
    found = why_not(quantized(tanh_net()), EveryNode(), FEEDS[0])
    by_name = {row.name: row for row in found}
    for name in ("a", "y"):
        assert (by_name[name].operator, by_name[name].kind) == ("QLinearConv", "integer")
        assert by_name[name].reason == ""
    assert by_name["b"].kind == "float"
    assert by_name["b"].reason == "ONNX Runtime has no integer kernel for Tanh"
    assert "Clip" in by_name["b"].remedy
    borders = [row.reason for row in found if row.kind == "overhead"]
    assert sorted(borders) == [
        "border: floats of Tanh become integers",
        "border: floats of the input become integers",
        "border: integers become floats for Tanh",
        "border: integers become floats for the output",
    ]


def test_what_a_split_leaves_float_was_a_choice_and_not_a_limit():
    artifact = quantized(tanh_net(), mode="static", only=("a",))
    found = rows(artifact)
    assert found["a"].kind == "integer"
    assert (found["y"].kind, found["y"].reason) == ("float", CHOICE)
    reasons = artifact.history[-1].numbers["operators"]["reasons"]
    assert reasons == {"Conv": {"left float by the split (faster or closer to FP32 so)": 1}}


def test_a_float_layer_between_integers_was_a_choice_with_its_shield_as_overhead():
    weights = {"u": (4, 4, 3, 3), "v": (4, 4, 3, 3), "w": (4, 4, 3, 3)}
    artifact = net("a = Conv(x, u)  b = Conv(a, v)  y = Conv(b, w)", **weights)
    found = rows(quantized(artifact, mode="static", only=("a", "y")))
    assert {found[name].kind for name in ("a", "y")} == {"integer"}
    assert (found["b"].kind, found["b"].reason) == ("float", CHOICE)
    (shield,) = (row for row in found.values() if row.operator == "Clip")
    assert shield.kind == "overhead"
    assert shield.reason.startswith("border")


def test_a_node_inside_an_if_says_which_if():
    found = rows(quantized(branching_net()))
    assert found["a"].kind == "integer"
    assert found["q"].operator == "FusedConv"
    assert found["q"].reason.startswith("inside the If y")
    assert "condition of y" in found["q"].remedy
    assert found["r"].reason == "ONNX Runtime has no integer kernel for Tanh"
    assert found["y"].kind == "overhead"
    assert found["is_big"].reason == "ONNX Runtime has no integer kernel for Greater"


def test_weights_that_are_computed_at_run_time_are_the_reason():
    body = """m = ReduceMean<axes = [0, 2, 3]>(x)
        u = Mul(w, m)
        a = Conv(x, v)
        y = Conv(a, u)"""
    artifact = net(body, v=(4, 4, 3, 3), w=(4, 4, 3, 3))
    found = rows(artifact)
    assert found["a"].reason == CHOICE
    assert found["y"].reason == "its weights are computed at run time, not constant"
    assert found["u"].reason.startswith("fed by floats of ReduceMean")


def test_a_graph_of_floats_says_what_could_have_been_integer():
    """BatchNormalization and HardSwish have no kernel, but folding and spelling take care of both.

    The Sigmoid stands between floats: Softplus, before it, has no integer form.
    """
    body = """a = Conv(x, w)
        n = BatchNormalization(a, s, o, u, i)
        h = HardSwish(n)
        q = MaxPool<kernel_shape = [2, 2]>(h)
        e = Softplus(q)
        y = Sigmoid(e)"""
    found = rows(net(body, w=(4, 4, 3, 3), s=(4,), o=(4,), u=(4,), i=(4,)))
    assert {found[name].reason for name in ("a", "h", "q")} == {CHOICE}
    assert found["e"].reason == "ONNX Runtime has no integer kernel for Softplus"
    assert found["e"].remedy
    assert found["y"].reason.startswith("fed by floats of Softplus")


def test_a_dynamic_scheme_does_not_cover_convolutions():
    body = "a = MatMul(x, v)  y = Conv(a, w)"
    found = rows(quantized(net(body, v=(8, 8), w=(4, 4, 3, 3)), mode="dynamic"))
    assert "dynamic" in found["y"].reason
    assert found["y"].kind == "float"
    assert "integer" in {row.kind for row in found.values()}


def test_recurrent_layers_are_integer_or_say_why_not():
    body = """one = Constant<value_ints = [1]>()
        sizes = Constant<value_ints = [4, 8, 8]>()
        t = Reshape(x, sizes)
        h = LSTM<hidden_size = 4>(t, v, w)
        f = Squeeze(h, one)
        k = RNN<hidden_size = 4>(f, p, q)
        y = Transpose<perm = [1, 0, 2, 3]>(k)"""
    shapes = {"v": (1, 16, 8), "w": (1, 16, 4), "p": (1, 4, 4), "q": (1, 4, 4)}
    found = rows(quantized(net(body, **shapes)))
    kinds = {row.operator: row for row in found.values()}
    assert kinds["DynamicQuantizeLSTM"].kind == "integer"
    assert kinds["RNN"].kind == "float"
    assert "RNN" in kinds["RNN"].reason
    assert "LSTM or GRU" in kinds["RNN"].remedy


def test_the_floats_of_a_rewritten_gru_are_not_blamed_on_its_loop():
    body = """sizes = Constant<value_ints = [4, 8, 8]>()
        t = Reshape(x, sizes)
        y = GRU<hidden_size = 4>(t, v, w)"""
    found = rows(quantized(net(body, v=(1, 12, 8), w=(1, 12, 4))))
    kinds = {row.operator: row for row in found.values()}
    assert kinds["Scan"].kind == "overhead"
    assert kinds["DynamicQuantizeMatMul"].kind == "integer"
    assert kinds["Tanh"].reason == "ONNX Runtime has no integer kernel for Tanh"
    assert kinds["Sigmoid"].reason.startswith("fed by floats")


def test_what_passes_integers_on_is_integer_and_moves_are_overhead():
    body = """a = Conv(x, w)
        b = MaxPool<kernel_shape = [2, 2]>(a)
        c = Transpose<perm = [0, 2, 3, 1]>(b)
        y = Tanh(c)"""
    found = why_not(quantized(net(body, w=(4, 4, 3, 3))), EveryNode(), FEEDS[0])
    kinds = {row.operator: (row.kind, row.reason) for row in found}
    assert [kind for op, (kind, _) in kinds.items() if op.endswith("MaxPool")] == ["integer"]
    assert kinds["Transpose"] == ("overhead", "moves data")


def test_shares_are_those_of_the_time_and_the_longest_comes_first():
    artifact = net("a = Conv(x, v)  b = Softplus(a)  y = Conv(b, v)", v=(4, 4, 3, 3))
    found = why_not(artifact, EveryNode("Softplus"), FEEDS[0])
    assert [row.operator for row in found] == ["Softplus", "Conv", "Conv"]
    assert [row.share for row in found] == pytest.approx([0.6, 0.2, 0.2])
    assert found[0].ms == 3.0


def test_the_profiler_times_every_node_of_a_quantized_graph():
    artifact = quantized(tanh_net())
    found = why_not(artifact, QuickMeter(), FEEDS[0])
    nodes = optimized(artifact.payload).graph.node
    assert sorted(row.operator for row in found) == sorted(node.op_type for node in nodes)
    assert sum(row.share for row in found) == pytest.approx(1)
    assert all(row.ms >= 0 for row in found)


def test_the_choice_is_told_by_what_was_shipped():
    failed = [Finding("FP32", 9), Finding("INT8, auto", reason="it failed")]
    made = [Finding("FP32", 9), Finding("INT8, auto", 5, reason="slower")]
    assert choice_of("FP32, folded", failed) == "FP32 was written: no INT8 form could be made"
    assert choice_of("FP32", made) == "FP32 was written: no INT8 form was shown faster"
    harmful = Finding("INT8, dynamic", 5, is_outside=True)
    assert "every INT8 form is outside" in choice_of("FP32", [made[0], harmful])
    assert "both faster and within" in choice_of("FP32", [*made, harmful])
    assert "measured faster" in choice_of("INT8, auto, fastest split", made)
    assert "faster or closer" in choice_of("INT8, auto, split of 21.5 dB", made)
    assert choice_of("autotune", made) == "autotune leaves it float"


def test_the_table_shows_the_longest_and_sums_up_the_rest(capsys):
    longest = NodeReport("first/" + "x" * 60, "Tanh", "float", 4.0, 0.4, "no kernel", "Clip")
    others = [NodeReport(f"n{i}", "QLinearConv", "integer", 0.4, 0.04, "", "") for i in range(15)]
    show_nodes([longest, *others])
    told = capsys.readouterr().out
    assert "60% integer, 40% float, 0% overhead" in told
    assert "no kernel -> Clip" in told
    assert told.count("QLinearConv") == 11
    assert "4 more: 1.600 ms, 16.0%" in told
    assert "first/" not in told  # a long name keeps its end
