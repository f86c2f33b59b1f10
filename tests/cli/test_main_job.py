"""The main job on the shipped references, as the README shows it."""

import json

import numpy as np
import onnxruntime
import pytest
from conftest import run_process

FEEDS = {
    "gan": {"z": np.zeros((2, 100), np.float32)},
    "cnn": {"image": np.zeros((2, 1, 28, 28), np.float32)},
    "rnn": {
        "tokens": np.zeros((2, 3), np.int64),
        "h": np.zeros((2, 2, 512), np.float32),
        "c": np.zeros((2, 2, 512), np.float32),
    },
    "rnn-gru": {"tokens": np.zeros((2, 3), np.int64), "h": np.zeros((2, 2, 512), np.float32)},
}
SAMPLES = {"gan": "200", "cnn": "200", "rnn": "3200", "rnn-gru": "3200"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEEDS)
def test_fetch_then_quantize_gives_a_small_file_that_stock_onnx_runtime_runs(workplace, name):
    assert run_process("fetch", name, cwd=workplace).code == 0
    options = ("--samples", SAMPLES[name], "--processes", "3", "--max-minutes", "1", "--json")
    done = run_process("quantize", f"{name}.pt", "-o", f"{name}.int8.onnx", *options, cwd=workplace)
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["verdict"] in ("faster", "slower", "no difference shown")
    assert told["speedup"]["low"] <= told["speedup"]["ratio"] <= told["speedup"]["high"]
    assert {"metric", "higher_is_better", "baseline", "value", "drop", "budget", "within"} <= set(
        told["quality"]
    )
    assert {"int8", "float", "reasons"} <= set(told["operators"])
    assert {each["kind"] for each in told["nodes"]} <= {"integer", "float", "overhead"}
    assert sum(each["share"] for each in told["nodes"]) == pytest.approx(1)
    size = told["size_bytes"]
    if told["shipped"].startswith("FP32"):  # a machine on which integers are not faster
        assert all(each["reason"] for each in told["candidates"] if each["name"][:4] == "INT8")
    else:
        assert told["operators"]["int8"]
        assert told["scheme"]
        assert size["before"] > size["after"]
    written = (workplace / told["output"]).stat().st_size
    assert written == pytest.approx(size["after"], rel=0.01)  # the evidence comes on top
    session = onnxruntime.InferenceSession(workplace / told["output"])
    assert all(np.isfinite(value).all() for value in session.run(None, FEEDS[name]))


@pytest.mark.slow
def test_every_stage_draws_and_writes(workplace):
    for command in (
        ("fetch", "gan"),
        ("export", "gan.pt"),
        ("sample", "gan.pt", "-o", "torch.png", "--count", "4"),
        ("sample", "gan.onnx", "-o", "onnx.png", "--count", "4"),
        ("sample", "rnn", "--count", "30", "-o", "text.txt"),
    ):
        done = run_process(*command, cwd=workplace)
        assert done.code == 0, done.stderr
    from PIL import Image

    pictures = [
        np.asarray(Image.open(workplace / f"{n}.png")).astype(int) for n in ("torch", "onnx")
    ]
    assert pictures[0].shape == pictures[1].shape
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # rounding to 8 bits may differ by one
    assert len((workplace / "text.txt").read_text()) == len("In the beginning") + 30 + 1


@pytest.mark.slow
def test_a_foreign_model_goes_through_quantize_and_bench_with_its_feeds(workplace):
    """A small detector-like graph with dynamic sizes, of nobody's task."""
    import onnx
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["" : 13]>
        foreign (float[N,3,H,W] picture) => (float[N,8] scores, int64[N,1] best) {
            a = Conv<pads = [1,1,1,1]>(picture, w1)
            b = Relu(a)
            c = Conv<strides = [2,2]>(b, w2)
            d = Relu(c)
            e = GlobalAveragePool(d)
            scores = Flatten(e)
            best = ArgMax<axis = 1>(scores)
        }"""
    model = onnx.parser.parse_model(text)
    for name, shape in (("w1", (16, 3, 3, 3)), ("w2", (8, 16, 3, 3))):
        values = (rng.standard_normal(shape) * 0.2).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, workplace / "foreign.onnx")
    pictures = rng.standard_normal((12, 1, 3, 20, 24)).astype(np.float32)
    np.savez(workplace / "feeds.npz", picture=pictures)
    feeds = ("--calibration", "feeds.npz")
    options = (*feeds, "--processes", "3", "--json")
    done = run_process("quantize", "foreign.onnx", *options, cwd=workplace)
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    whole = next(each for each in told["candidates"] if each["name"] == "INT8, auto")
    assert whole["measured"] or whole["reason"]
    assert told["is_fallback"] == (told["shipped"] == "FP32")
    assert set(told["quality"]["details"]["sqnr_db_by_output"]) == {"scores", "best"}
    assert any("No --evaluation" in note for note in told["notes"])
    models = ("foreign.onnx", "foreign.int8.onnx")
    done = run_process("bench", *models, *options, cwd=workplace)
    assert done.code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["model"] for row in rows] == list(models)
    assert [row["is_baseline"] for row in rows] == [True, False]
    assert rows[0]["cost"]["macs"] > rows[1]["cost"]["macs"] * 0.99
    assert (rows[1]["cost"]["integer_macs"] > 0) == bool(told["operators"]["int8"])
