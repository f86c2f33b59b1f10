"""The quantize pass with repairs: what they gain, what is told, and that they can be left out."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError
from aigc_compress.passes import Context, QuantizeConfig
from aigc_compress.passes.operators import operators_at_run_time, with_node_names
from aigc_compress.passes.quantize import QuantizePass
from aigc_compress.passes.quantize.repairs import repairs
from aigc_compress.passes.quantize.static import quantize_static

ALL = {"equalize": True, "smooth": 0.5, "rounding": "adaptive", "correct_bias": True}


def model(nodes, tables, x_shape):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(t.astype(np.float32), name) for name, t in tables.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def context(x_shape, seed=1, count=8):
    rng = np.random.default_rng(seed)
    feeds = tuple({"x": rng.standard_normal(x_shape).astype(np.float32)} for _ in range(count))
    return Context(feeds[:2], feeds)


def unequal(rng, size):
    return 10.0 ** rng.uniform(-1.5, 1.5, size)


def separable(seed=0, width=16):
    """Pointwise, depthwise, pointwise: the channels between them are of very different sizes."""
    rng = np.random.default_rng(seed)
    sizes = [unequal(rng, width) for _ in range(2)]
    column = [each.reshape(-1, 1, 1, 1) for each in sizes]
    tables = {
        "w1": rng.standard_normal((width, 3, 1, 1)) * column[0],
        "b1": 0.1 * sizes[0],
        "wd": rng.standard_normal((width, 1, 3, 3)) / column[0] * column[1],
        "bd": 0.1 * sizes[1],
        "w2": rng.standard_normal((8, width, 1, 1)) / sizes[1].reshape(1, -1, 1, 1),
        "b2": rng.standard_normal(8),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="point1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node(
            "Conv", ["r1", "wd", "bd"], ["cd"], name="depth", group=width, pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["cd"], ["rd"], name="relu2"),
        helper.make_node("Conv", ["rd", "w2", "b2"], ["y"], name="point2"),
    ]
    return model(nodes, tables, [2, 3, 10, 10])


def outliers(seed=0, width=32):
    """LayerNormalization with two scales of 60, then a product: the case of SmoothQuant."""
    rng = np.random.default_rng(seed)
    scale = np.ones(width)
    scale[[3, 20]] = 60
    tables = {
        "s": scale,
        "t": np.zeros(width),
        "w": rng.standard_normal((width, 24)) / scale[:, None],
        "b": rng.standard_normal(24),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "s", "t"], ["h"], name="norm"),
        helper.make_node("MatMul", ["h", "w"], ["m"], name="product"),
        helper.make_node("Add", ["m", "b"], ["y"], name="add"),
    ]
    return model(nodes, tables, [4, 6, width])


def deep(seed=0, width=12, depth=6):
    """Convolutions and Relu in a row: errors of each layer meet those of all before."""
    rng = np.random.default_rng(seed)
    nodes, tables, last, channels = [], {}, "x", 3
    for index in range(depth):
        tables[f"w{index}"] = rng.standard_normal((width, channels, 3, 3)) / (3 * channels**0.5)
        tables[f"b{index}"] = 0.1 * rng.standard_normal(width)
        inputs = [last, f"w{index}", f"b{index}"]
        nodes.append(helper.make_node("Conv", inputs, [f"c{index}"], name=f"conv{index}"))
        last, channels = ("y" if index == depth - 1 else f"r{index}"), width
        nodes.append(helper.make_node("Relu", [f"c{index}"], [last], name=f"relu{index}"))
    return model(nodes, tables, [2, 3, 18, 18])


X_SHAPES = {"separable": (2, 3, 10, 10), "outliers": (4, 6, 32), "deep": (2, 3, 18, 18)}
NETS = {"separable": separable, "outliers": outliers, "deep": deep}


def quantized(kind, **options):
    net = NETS[kind]()
    config = QuantizeConfig(mode="static", **options)
    made, told = quantize_static(net, config, context(X_SHAPES[kind]))
    return net, made, told["static"]


def unseen_db(kind, **options):
    net, made, _ = quantized(kind, **options)
    feeds = context(X_SHAPES[kind], seed=2).calibration
    sessions = [OrtSession(Artifact("onnx", each), threads=1) for each in (net, made)]
    return lowest_agreement_db(*([run.run(each) for each in feeds] for run in sessions))


def test_smoothing_gains_where_channels_stand_out():
    plain = unseen_db("outliers")
    # A channel of 60 beside ones of 1 leaves these 4 of 256 integers: some 30 dB are to be had.
    assert unseen_db("outliers", smooth=0.5) > plain + 10


def test_equalization_gains_with_one_scale_for_unequal_channels():
    plain = unseen_db("separable", per_channel=False)
    assert unseen_db("separable", per_channel=False, equalize=True) > plain + 6


@pytest.mark.parametrize("repair", [{"rounding": "adaptive"}, {"correct_bias": True}])
def test_fitted_weights_and_biases_gain_on_what_was_not_seen(repair):
    # A reduced range, so that the weights' noise is no less than the activations'.
    plain = unseen_db("deep", reduce_range=True)
    assert unseen_db("deep", reduce_range=True, **repair) > plain + 0.1


def test_rounded_integers_are_at_most_one_step_from_the_nearest():
    plain, rounded = (
        {each.name: numpy_helper.to_array(each) for each in made.graph.initializer}
        for _, made, _ in (quantized("separable"), quantized("separable", rounding="adaptive"))
    )
    assert plain.keys() == rounded.keys()
    steps = {
        name: np.abs(plain[name].astype(int) - rounded[name].astype(int)).max()
        for name, each in plain.items()
        if each.dtype == np.int8 and each.ndim > 1
    }
    assert set(steps) == {"w1_quantized", "wd_quantized", "w2_quantized"}
    assert max(steps.values()) == 1
    for name in plain.keys() - steps.keys():
        assert np.array_equal(plain[name], rounded[name])


def test_what_was_repaired_is_told():
    _, _, told = quantized("separable", **ALL)
    assert told["repairs"]["equalize"] == {"pairs": 2}
    assert told["repairs"]["smooth"] == {"activations": 2, "alpha": 0.5}
    assert told["repairs"]["rounding"]["layers"] == 3
    assert told["repairs"]["rounding"]["weights"] == 16 * 3 + 16 * 9 + 8 * 16
    assert told["repairs"]["correct_bias"] == {"layers": 3}
    assert told["given_up"] == []


def test_a_repair_that_touches_nothing_says_so():
    _, _, told = quantized("outliers", **ALL)
    assert told["repairs"]["equalize"] == {"pairs": 0}
    assert told["repairs"]["correct_bias"] == {"layers": 0}
    assert told["repairs"]["smooth"]["activations"] == 1
    assert [each.split(" touched nothing: ")[0] for each in told["given_up"]] == [
        "equalize",
        "correct_bias",
    ]


def test_without_repairs_none_is_told_and_the_tool_gets_the_graph_as_it_came(monkeypatch):
    seen = []
    from aigc_compress.passes.quantize import static

    def watched(quantize, graph, attempts, real=static.first_that_works):
        seen.append(graph)
        return real(quantize, graph, attempts)

    monkeypatch.setattr(static, "first_that_works", watched)
    net, made, told = quantized("separable")
    assert "repairs" not in told
    assert seen[0].SerializeToString() == with_node_names(net).SerializeToString()
    explicit = {"equalize": False, "smooth": None, "rounding": "nearest", "correct_bias": False}
    assert made.SerializeToString() == quantized("separable", **explicit)[1].SerializeToString()


@pytest.mark.parametrize("kind", NETS)
def test_repairing_twice_gives_the_same_bytes(kind):
    first, second = (quantized(kind, **ALL)[1].SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("kind", NETS)
def test_repairs_cost_no_operator_at_run_time(kind):
    _, plain, _ = quantized(kind)
    repaired = quantized(kind, **ALL)[1]
    onnx.checker.check_model(repaired)
    assert operators_at_run_time(repaired) == operators_at_run_time(plain)


def test_nodes_are_chosen_by_the_same_names_after_repairs():
    _, made, _ = quantized("separable", only=("point1", "relu1"), **ALL)
    readers = [each for each in made.graph.node if each.name in ("depth", "point2")]
    weights = {each.name for each in made.graph.initializer if each.data_type == TensorProto.FLOAT}
    assert all(each.input[1] in weights for each in readers)
    assert "w1_quantized" in {each.name for each in made.graph.initializer}


def test_the_given_graph_stays_as_it_was():
    net = separable()
    as_bytes = net.SerializeToString()
    quantize_static(net, QuantizeConfig(mode="static", **ALL), context((2, 3, 10, 10)))
    assert net.SerializeToString() == as_bytes


def test_variants_are_those_that_can_touch_something():
    config = QuantizeConfig(mode="static")
    fitted = config.model_copy(update={"rounding": "adaptive", "correct_bias": True})
    smoothed = fitted.model_copy(update={"smooth": 0.5})
    equalized = fitted.model_copy(update={"equalize": True})
    assert repairs(outliers(), config) == (fitted, smoothed)
    assert repairs(separable(), config) == (fitted, smoothed, equalized)
    assert repairs(separable(), fitted) == (smoothed, equalized)
    assert repairs(separable(), config.model_copy(update={"mode": "dynamic"})) == ()


def test_a_graph_without_constant_weights_has_no_variants():
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"], name="square")]
    assert repairs(model(nodes, {}, [4, 4]), QuantizeConfig(mode="static")) == ()


def test_repairs_of_a_mode_that_is_not_static_are_refused():
    artifact = Artifact("onnx", outliers())
    config = QuantizeConfig(mode="dynamic", rounding="adaptive", smooth=0.5)
    with pytest.raises(PassError, match="smooth, rounding repair static quantization"):
        QuantizePass().run(artifact, config, context((4, 6, 32)))
