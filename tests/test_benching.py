import pytest
from conftest import tiny_checkpoint

from aigc_compress import benching
from aigc_compress.api import export
from aigc_compress.artifact import save_onnx
from aigc_compress.bench.latency import LatencyPlan
from aigc_compress.bench_result import BenchOptions
from aigc_compress.benching import bench_models, workspace_sources
from aigc_compress.checkpoint import write_checkpoint
from aigc_compress.engines import ENGINES, Availability
from aigc_compress.errors import UsageError
from aigc_compress.loading import load_artifact
from aigc_compress.passes import Context, FoldConfig, OpenVinoConfig
from aigc_compress.pipeline import run_passes
from aigc_compress.workload import FeedOptions, make_workload

QUICK = LatencyPlan(processes=2, blocks=2, block_ms=1.0, warmup_ms=1.0)


@pytest.fixture
def models(workplace):
    write_checkpoint(workplace / "cnn.pt", tiny_checkpoint("cnn"))
    export("cnn.pt", workplace / "cnn.onnx")
    return workplace


def options(**more):
    return BenchOptions(**{"plan": QUICK, "samples": 100, **more})


def test_the_named_baseline_wins_over_the_order_of_engines_and_models(models):
    result = bench_models(
        ["cnn.pt"], options(engines=("torch", "ort"), baseline="cnn.onnx", measures_quality=False)
    )
    first = result.rows[0]
    assert (first.model, first.engine, first.is_baseline) == ("cnn.onnx", "ort", True)
    assert {(row.model, row.engine) for row in result.rows[1:]} == {
        ("cnn.pt", "torch"),
        ("cnn.pt", "ort"),
    }
    assert any("cnn.onnx was left out on torch" in note for note in result.notes)


def test_every_size_gets_its_rows_and_every_row_its_quality_and_limit(models):
    result = bench_models(["cnn.onnx"], options(batches=(1, 2)))
    assert [(row.batch, row.length) for row in result.rows] == [(1, 1), (2, 1)]
    document = result.document()
    macs = [row["cost"]["macs"] for row in document["rows"]]
    assert macs[1] == 2 * macs[0]
    assert document["rows"][0]["quality"]["samples"] == 100
    assert len(document["rows"][0]["blocks_ms"]) == QUICK.processes
    assert document["trust"]["foreign_cores"] >= 0


def test_int8_of_any_pass_is_no_baseline_and_shows_its_operators(models):
    graph = load_artifact(models / "cnn.onnx")
    workload = make_workload(graph, FeedOptions())
    context = Context(workload.check_feeds(), workload.calibration(seed=0)[:8])
    quantized = run_passes(graph, [("fold", FoldConfig()), ("openvino", OpenVinoConfig())], context)
    save_onnx(quantized, models / "a.onnx")
    result = bench_models(["a.onnx", "cnn.onnx"], options(measures_quality=False))
    told = {row.model: row for row in result.rows}
    assert told["cnn.onnx"].is_baseline
    assert told["a.onnx"].operators["int8"]["Conv"] > 0
    assert told["cnn.onnx"].operators is None


def test_models_of_other_tasks_form_groups_of_their_own(models):
    write_checkpoint(models / "gan.pt", tiny_checkpoint("gan"))
    result = bench_models(["cnn.onnx", "gan.pt"], options(measures_quality=False))
    assert [row.is_baseline for row in result.rows] == [True, True]


def test_a_baseline_with_another_face_is_refused_before_anything_is_timed(models):
    write_checkpoint(models / "gan.pt", tiny_checkpoint("gan"))
    seen = []
    with pytest.raises(UsageError, match="cannot be compared"):
        bench_models(
            ["cnn.onnx"],
            options(baseline="gan.pt"),
            on_step=lambda done, total: seen.append(done),
        )
    assert seen == []


def test_the_workspace_is_the_models_of_the_folder(models):
    (models / "notes.txt").write_text("no model")
    assert [str(path) for path in workspace_sources(models)] == ["cnn.onnx", "cnn.pt"]


def test_all_engines_are_those_that_are_here_and_the_others_say_why(workplace, gan_pt, monkeypatch):
    class Missing:
        name, stage = "missing", "onnx"

        def availability(self):
            return Availability(False, "no such device", "pip install a-device")

    table = {"ort": ENGINES["ort"], "missing": Missing(), "torch": ENGINES["torch"]}
    monkeypatch.setattr(benching, "ENGINES", table)
    result = bench_models([gan_pt], options(engines=("all",), measures_quality=False))
    assert [row.engine for row in result.rows] == ["ort", "torch"]
    (note,) = [each for each in result.notes if "missing" in each]
    assert "no such device" in note
    assert "pip install a-device" in note
