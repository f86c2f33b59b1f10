"""INT8 graphs for engines with a compiler: ranges and float layers stay within the budget."""

import json

import numpy as np
import pytest
from conftest import graph

from aigc_compress.artifact import Artifact, onnx_bytes, save_onnx
from aigc_compress.budget import Budget
from aigc_compress.building import EngineOptions, graph_for_engine
from aigc_compress.engine_int8 import Int8Judge, search_int8
from aigc_compress.errors import PassError
from aigc_compress.loading import load_artifact
from aigc_compress.passes import Context, OpenVinoConfig
from aigc_compress.workload import FeedOptions, make_workload

# The cubes of the first column are a thousand times as large as the others', and weigh as little.
NET = """net (float[batch,4] x) => (float[batch,3] y, float[batch,3] z)
<float[4,3] gentle = {1,2,3,4,5,6,7,8,9,1,2,3},
 float[4,3] harsh = {0.001,0.002,0.003,4,-5,6,-7,8,9,1,2,-3}>
{ y = MatMul(x, gentle)
  square = Mul(x, x)
  cube = Mul(square, x)
  z = MatMul(cube, harsh) }"""


@pytest.fixture
def options(workplace):
    save_onnx(Artifact("onnx", graph(NET)), workplace / "net.onnx")
    rng = np.random.default_rng(0)
    for name in ("feeds", "others"):
        x = rng.normal(size=(40, 16, 4)) * [10, 1, 1, 1]
        np.savez(workplace / f"{name}.npz", x=x.astype(np.float32))
    feeds = FeedOptions(workplace / "feeds.npz", workplace / "others.npz")
    return lambda **more: EngineOptions(precision="int8", feeds=feeds, **more)


def test_the_layer_that_breaks_the_budget_stays_float(options, workplace):
    whole = graph_for_engine(workplace / "net.onnx", options(ranges="minmax"))
    found = graph_for_engine(workplace / "net.onnx", options())

    assert not whole.choice.judgement.within
    assert any("outside the quality budget" in note for note in whole.notes)
    assert found.choice.judgement.within
    assert found.choice.judgement.quality.split == "feeds"
    numbers = found.graph.history[-1].numbers
    assert numbers["operators"]["int8"] == {"MatMul": 1}
    (kept,) = found.graph.history[-1].config["keep_float"]
    assert kept in {node.name for node in found.graph.payload.graph.node}
    assert json.loads(json.dumps(found.choice.document()))["tried"][0]["within"] is False


def test_where_any_ranges_do_the_closest_are_taken_and_all_layers_are_integer(options, workplace):
    found = graph_for_engine(workplace / "net.onnx", options(budget=Budget(least_sqnr_db=-100.0)))

    assert found.graph.history[-1].numbers["operators"]["int8"] == {"MatMul": 2}
    assert [each.judgement.within for each in found.choice.attempts] == [True]
    fixed = [
        graph_for_engine(workplace / "net.onnx", options(ranges=each))
        for each in ("minmax", "percentile-99.9", "mse")
    ]
    closest = max(each.graph.history[-1].numbers["sqnr_db"] for each in fixed)
    assert found.graph.history[-1].numbers["sqnr_db"] >= closest


def test_a_budget_out_of_reach_is_told_and_the_closest_is_given(options, workplace):
    found = graph_for_engine(workplace / "net.onnx", options(budget=Budget(least_sqnr_db=90.0)))

    assert not found.choice.judgement.within
    (told,) = [note for note in found.notes if "outside the quality budget" in note]
    assert "--precision fp16" in told
    values = [each.judgement.quality.value for each in found.choice.attempts]
    assert onnx_bytes(found.graph) == onnx_bytes(found.choice.attempts[np.argmax(values)].graph)


def test_layers_that_the_user_leaves_float_stay_float(options, workplace):
    names = graph_for_engine(workplace / "net.onnx", options()).graph.history[-1].config
    (harsh,) = names["keep_float"]
    found = graph_for_engine(workplace / "net.onnx", options(keep_float=(harsh,)))

    assert found.graph.history[-1].config["keep_float"] == [harsh]
    assert found.graph.history[-1].numbers["operators"]["int8"] == {"MatMul": 1}
    layers = [each for each in found.graph.payload.graph.node if each.op_type == "MatMul"]
    everything = options(keep_float=tuple(each.name for each in layers))
    with pytest.raises(PassError, match="does not stay float"):
        graph_for_engine(workplace / "net.onnx", everything)


def test_for_openvino_the_layer_that_breaks_the_budget_stays_float_too(options, workplace):
    artifact = load_artifact(workplace / "net.onnx")
    workload = make_workload(artifact, options().feeds)
    context = Context(workload.check_feeds(), workload.calibration(seed=0))
    judge = Int8Judge(artifact, workload, context)
    found = search_int8(artifact, OpenVinoConfig(), context, judge)
    best, attempts = found.best, found.attempts
    assert not attempts[0].judgement.within
    assert best.judgement.within
    assert best.graph.history[-1].name == "openvino"
    assert best.graph.history[-1].numbers["operators"]["int8"] == {"MatMul": 1}


def test_a_search_that_is_late_ends_with_the_best_so_far(options, workplace):
    artifact = load_artifact(workplace / "net.onnx")
    workload = make_workload(artifact, options().feeds)
    context = Context(workload.check_feeds(), workload.calibration(seed=0))
    judge = Int8Judge(artifact, workload, context)
    found = search_int8(artifact, OpenVinoConfig(), context, judge, is_late=lambda: True)
    assert found.was_cut
    assert [each is found.best for each in found.attempts] == [True]
    ended = search_int8(artifact, OpenVinoConfig(), context, judge, is_late=lambda: False)
    assert not ended.was_cut
