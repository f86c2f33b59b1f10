import numpy as np
import pytest
from onnx import parser

from aigc_compress.artifact import Artifact, Step
from aigc_compress.bench.latency import Contest
from aigc_compress.bench.timing import Block, ProcessRecord, Timing
from aigc_compress.cache import Cache, cache_root, digest, digest_feeds
from aigc_compress.task import Quality


def graph(name="g", factor=2.0):
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    {name} (float[2] x) => (float[2] y) <float f = {{{factor}}}> {{ y = Mul(x, f) }}"""
    return Artifact("onnx", parser.parse_model(text), source_sha256="abc")


def never():
    raise AssertionError("it was made again")


def timing():
    blocks = [Block((1000, 2000), 3000), Block((1500,), 1500)]
    return Timing((ProcessRecord(1.0, 2.0, 3, cores=(0, 1), blocks=blocks),))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (dict[str, float], {"a": 0.1, "b": float("inf")}),
        (Quality, Quality("KID", 3.2, False, 10, "test", 0.1, {"more": {"low": 1.0}})),
        (Contest, Contest((timing(), timing()), "out of time", 0.96, 3)),
    ],
)
def test_what_is_kept_comes_back_equal_from_another_process(tmp_path, kind, value):
    assert Cache(tmp_path).value(["q", 1], kind, lambda: value) == value
    assert Cache(tmp_path).value(["q", 1], kind, never) == value


def test_an_artifact_comes_back_with_its_history(tmp_path):
    before = graph()
    made = before.then(graph(factor=3.0).payload, Step("triple", {"by": 3}), stage="onnx")
    assert Cache(tmp_path).artifact(before, ["triple"], lambda: made) == made
    found = Cache(tmp_path).artifact(before, ["triple"], never)
    assert (found.history, found.source_sha256) == (made.history, "abc")
    assert digest(found) == digest(made)


def test_another_question_another_graph_and_a_fresh_run_are_made_anew(tmp_path):
    Cache(tmp_path).value(["q", 1], int, lambda: 1)
    assert Cache(tmp_path).value(["q", 2], int, lambda: 2) == 2
    fresh = Cache(tmp_path, is_fresh=True)
    assert fresh.value(["q", 1], int, lambda: 3) == 3
    assert fresh.value(["q", 1], int, never) == 3  # its own is good
    assert digest(graph(factor=2.0)) != digest(graph(factor=2.5))


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": "x"}', b"\xff"])
def test_what_cannot_be_read_counts_as_missing(tmp_path, content):
    Cache(tmp_path).value(["q"], dict[str, float], lambda: {"a": 1.0})
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    assert Cache(tmp_path).value(["q"], dict[str, float], lambda: {"a": 2.0}) == {"a": 2.0}


def test_a_damaged_graph_is_made_again(tmp_path):
    before, made = graph(), graph(factor=3.0)
    Cache(tmp_path).artifact(before, ["p"], lambda: made)
    for path in tmp_path.glob("*.onnx"):
        path.write_bytes(b"\xff\xff\xff")
    assert Cache(tmp_path).artifact(before, ["p"], lambda: made) is made


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache.of_run(["run"], tmp_path / "file")
    assert cache.value(["q"], int, lambda: 1) == 1


def test_runs_have_folders_of_their_own(tmp_path):
    Cache.of_run(["one"], tmp_path).value(["q"], int, lambda: 1)
    assert Cache.of_run(["two"], tmp_path).value(["q"], int, lambda: 2) == 2
    assert Cache.of_run(["one"], tmp_path).value(["q"], int, never) == 1


def test_the_runs_used_longest_ago_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr("aigc_compress.cache.MOST_BYTES", 10)
    for index in range(3):
        Cache.of_run([index], tmp_path).value(["q"], str, lambda: "8 bytes.")
    assert len(list(tmp_path.iterdir())) == 2  # the one before, and the one that has just begun


def test_feeds_differ_by_names_shapes_and_values():
    x = np.arange(4, dtype=np.float32)
    sets = [{"x": x}, {"y": x}, {"x": x.reshape(2, 2)}, {"x": x + 1}, {"x": x.astype(np.float64)}]
    assert len({digest_feeds([each]) for each in sets}) == 5


def test_the_cache_stands_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("AIGC_COMPRESS_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"
    monkeypatch.delenv("AIGC_COMPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "aigc-compress"
