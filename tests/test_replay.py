import json

import pytest
from conftest import tiny_checkpoint

from aigc_compress.api import export
from aigc_compress.bench.latency import LatencyPlan
from aigc_compress.bench_result import BenchOptions
from aigc_compress.benching import bench_models
from aigc_compress.checkpoint import write_checkpoint
from aigc_compress.console import to_json
from aigc_compress.replay import read_result

QUICK = LatencyPlan(processes=3, blocks=2, block_ms=1.0, warmup_ms=1.0, seed=5)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    models = [folder / "gan.pt", folder / "gan.onnx"]
    write_checkpoint(models[0], tiny_checkpoint("gan"))
    export(*models)
    options = BenchOptions(
        engines=("ort", "torch"), plan=QUICK, samples=100, profiles_layers=True, seed=5
    )
    return to_json(bench_models(models, options).document())


@pytest.fixture
def document(measured):
    return json.loads(measured)


def test_every_number_of_a_result_is_derived_again_from_its_raw_times(document):
    derived = json.loads(to_json(read_result(document).document()))
    assert derived == document
    assert {row["engine"] for row in document["rows"]} == {"ort", "torch"}
    assert document["rows"][0]["layers"]
    assert document["rows"][0]["quality"]["exhibit"]["kind"] == "image/png"


def test_a_changed_raw_time_changes_what_is_printed(document):
    row = document["rows"][1]
    row["calls_ns"] = [[[2 * ns for ns in block] for block in p] for p in row["calls_ns"]]
    derived = read_result(document).document()["rows"][1]
    assert derived["latency_ms"] == pytest.approx(2 * row["latency_ms"])
    assert derived["speedup"]["ratio"] == pytest.approx(row["speedup"]["ratio"] / 2)


def test_the_command_replays_what_it_wrote(run_cli, document, workplace):
    (workplace / "r.json").write_text(json.dumps(document))
    again = run_cli("bench", "--replay", "r.json", "--json")
    assert again.code == 0
    assert json.loads(again.stdout)["rows"] == document["rows"]
    assert "against itself" in run_cli("bench", "--replay", "r.json").stdout


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"schema": "other"}', '{"schema": "aigc-compress/bench/1"}', "[" * 100_000],
)
def test_a_file_that_is_no_result_is_refused_in_one_line(run_cli, workplace, content):
    (workplace / "r.json").write_text(content)
    ended = run_cli("bench", "--replay", "r.json")
    assert ended.code != 0
    assert "r.json" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_replay_takes_no_models(run_cli, workplace):
    assert run_cli("bench", "gan", "--replay", "r.json").code == 2
