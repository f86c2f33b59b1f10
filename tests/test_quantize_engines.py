"""`quantize --engine`: the answer may run on another engine than ONNX Runtime."""

import json

import onnx
import pytest

from aigc_compress import engines
from aigc_compress.bench.latency import LatencyPlan
from aigc_compress.engines import Availability, get_engine
from aigc_compress.errors import NotOnThisMachineError, UsageError
from aigc_compress.loading import load_artifact
from aigc_compress.quantizing import QuantizeOptions, quantize

pytest.importorskip("openvino", reason="openvino is not installed")
QUICK = LatencyPlan(processes=3, blocks=2, block_ms=2.0, warmup_ms=2.0)


def asked(*engines, **more):
    return QuantizeOptions(plan=QUICK, samples=64, engines=engines, **more)


def test_every_graph_competes_on_every_engine_that_is_here(cnn_pt, workplace):
    result = quantize(cnn_pt, workplace / "cnn.onnx", asked("auto"))
    told = {each["name"]: each for each in result.document()["candidates"]}
    there = {name: each for name, each in told.items() if name.endswith(" on openvino")}
    assert "FP32 on openvino" in there
    assert len(there) > 1
    assert there["FP32 on openvino"]["speedup"]["ratio"] > 0
    assert there["INT8 for openvino on openvino"]["speedup"]["ratio"] > 0
    shipped = result.gated.winner
    assert shipped.engine in ("ort", "openvino", "openvino-throughput")
    assert result.document()["engine"] == shipped.engine
    assert (f" on {shipped.engine}" in shipped.name) == (shipped.engine != "ort")
    assert any("ort-cuda" in note for note in result.notes)
    # The file says for which engine it is, and runs there.
    props = {p.key: p.value for p in onnx.load(workplace / "cnn.onnx").metadata_props}
    history = json.loads(props["aigc_compress.history"])
    assert history[-1]["numbers"]["engine"] == shipped.engine
    artifact = load_artifact(workplace / "cnn.onnx")
    get_engine(shipped.engine).load(artifact, threads=1)


@pytest.mark.parametrize("name", ["torch", "tensorflow"])
def test_an_engine_that_runs_no_onnx_files_is_refused(name, cnn_pt, workplace):
    with pytest.raises(UsageError):
        quantize(cnn_pt, workplace / "cnn.onnx", asked(name))
    assert not (workplace / "cnn.onnx").exists()


def test_an_engine_that_is_named_and_missing_is_an_error(cnn_pt, workplace):
    with pytest.raises(NotOnThisMachineError, match="ort-cuda"):
        quantize(cnn_pt, workplace / "cnn.onnx", asked("ort", "ort-cuda"))


def test_an_engine_that_does_not_start_is_a_candidates_failure(cnn_pt, workplace, monkeypatch):
    """ONNX Runtime lists a provider whose libraries are missing as present."""

    class Broken:
        name, stage, int8_pass = "ort-broken", "onnx", "openvino"

        def availability(self):
            return Availability(True, "present, it says")

        def load(self, artifact, *, threads):
            raise NotOnThisMachineError("a library is missing")

    monkeypatch.setitem(engines.ENGINES, "ort-broken", Broken())
    result = quantize(cnn_pt, workplace / "cnn.onnx", asked("ort-broken"))
    told = {each.name: each.reason for each in result.gated.findings}
    assert told["FP32 on ort-broken"] == "a library is missing"
    assert told["INT8 for openvino on ort-broken"] == "a library is missing"
    assert result.gated.is_fallback
    assert result.gated.winner.engine == "ort"


def test_where_one_engine_is_named_the_answer_is_not_for_another(cnn_pt, workplace):
    result = quantize(cnn_pt, workplace / "cnn.onnx", asked("openvino"))
    assert result.gated.is_fallback or result.gated.winner.engine == "openvino"
    reasons = {each.name: each.reason for each in result.gated.findings}
    assert all(told for name, told in reasons.items() if not name.endswith(" on openvino"))


def test_when_the_time_is_up_no_search_begins_for_another_engine(cnn_pt, workplace):
    result = quantize(cnn_pt, workplace / "cnn.onnx", asked("openvino", most_minutes=0.0))
    told = {each.name: each.reason for each in result.gated.findings}
    assert told["INT8 for openvino on openvino"] == "the time was up"
