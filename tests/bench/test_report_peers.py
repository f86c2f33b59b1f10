"""Documents of peers: the table at the top, and the same as JSON."""

import json

import pytest
from report_documents import HOSTILE, Page, document, quality, read, render, row, speedup

from aigc_compress.bench.report import report_document
from aigc_compress.bench.report.groups import group_rows
from aigc_compress.bench.report.matrix import make_matrices

PEERS = "aigc-compress/peers/1"
FASTER, SLOWER = speedup(2.0, 1.9, 2.1), speedup(0.5, 0.4, 0.6)


def peer(name, model, **changes):
    return row(model, peer=name, **changes)


def failed(name, model):
    return {"peer": name, "model": model, "engine": "openvino", "error": "it crashed"}


def contest(model="gan.onnx", *, flags=("avx2",), name="NNCF"):
    """Return a baseline, a peer beyond the budget, one that failed, and one within."""
    rows = (
        peer("ORT", model, is_baseline=True, speedup=speedup(1.0, 0.9, 1.1)),
        peer(name, model, speedup=FASTER, quality=quality(80.0, within=False)),
        failed("INC", model),
        peer("ours", model, speedup=SLOWER, quality=quality(90.0)),
    )
    machine = {"cpu": "A CPU", "flags": list(flags)}
    return document(*rows, schema=PEERS, machine=machine, settings={"threads": 1})


def matrices(tmp_path, *documents):
    return make_matrices(group_rows([read(tmp_path, each) for each in documents]))


def test_a_peer_is_a_row_and_a_model_a_column_over_all_documents(tmp_path):
    second = contest("cnn.onnx")
    second["rows"].append(peer("late", "cnn.onnx", speedup=FASTER))
    (found,) = matrices(tmp_path, contest(), second)
    assert found.place == "A CPU with avx2, 1 thread"
    assert found.columns == ("gan", "cnn")
    cells = dict(found.lines)
    assert [*cells] == ["ORT", "NNCF", "INC", "ours", "late"]
    assert cells["late"][0] is None
    assert cells["late"][1].chip.word == "faster"
    assert {len(each) for each in cells.values()} == {2}


def test_a_cell_tells_the_speed_the_verdict_and_a_quality_outside(tmp_path):
    (found,) = matrices(tmp_path, contest())
    cells = {name: each for name, (each,) in found.lines}
    times, dash = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
    told = {name: (each.speed, each.note, each.chip.word) for name, each in cells.items()}
    assert told == {
        "ORT": ("2.000 ms", f"A/A 0.90{dash}1.10", "baseline"),
        "NNCF": (f"2.00{times}", f"1.90{dash}2.10", "faster"),
        "INC": ("", "", "failed"),
        "ours": (f"0.50{times}", f"0.40{dash}0.60", "slower"),
    }
    assert [name for name, each in cells.items() if each.outside] == ["NNCF"]


def test_machines_with_other_instructions_have_tables_of_their_own(tmp_path):
    told = contest(), contest(flags=["avx2", "avx_vnni"]), contest("cnn.onnx")
    assert [each.columns for each in matrices(tmp_path, *told)] == [("gan", "cnn"), ("gan",)]


def test_sizes_of_a_call_are_columns_of_their_own(tmp_path):
    told = contest()
    told["rows"] += [{**each, "batch": 8} for each in told["rows"] if "batch" in each]
    (found,) = matrices(tmp_path, told)
    assert found.columns == ("gan", "gan, batch 8")


def test_results_of_bench_have_no_table_of_peers(tmp_path):
    assert matrices(tmp_path, document(row("a.onnx"))) == []
    assert not [
        tag
        for tag, given in Page(render(tmp_path, document(row("a")))).tags
        if given.get("class") == "matrix"
    ]


def test_the_table_stands_above_the_single_results(tmp_path):
    page = Page(render(tmp_path, contest()))
    classes = [given.get("class", "") for _, given in page.tags]
    assert classes.index("matrix") < min(i for i, each in enumerate(classes) if "cards" in each)
    assert "3 results of peers, one by one" in page.text
    assert "it crashed" in page.text
    assert "3 candidates" in page.text


def test_hostile_names_of_peers_and_models_stay_texts(tmp_path):
    calm = Page(render(tmp_path, contest("a_b.onnx")))
    spoilt = Page(render(tmp_path, contest(HOSTILE + "_", name=HOSTILE)))
    assert {tag for tag, _ in spoilt.tags} == {tag for tag, _ in calm.tags}
    assert all(not name.startswith("on") for _, given in spoilt.tags for name in given)


@pytest.mark.parametrize("told", [contest(), document(row("a.onnx"))], ids=["peers", "bench"])
def test_the_document_of_a_report_is_plain_json_with_the_numbers_of_its_rows(tmp_path, told):
    found = json.loads(json.dumps(report_document([read(tmp_path, told)]), allow_nan=False))
    assert found["schema"] == "aigc-compress/report/1"
    for given, shown in zip(told["rows"], found["rows"], strict=True):
        for name in ("latency_ms", "speedup", "engine", "error"):
            assert shown[name] == given.get(name)
        value = given["quality"]["value"] if given.get("quality") else None
        assert (shown["quality"] or {}).get("value") == value


def test_the_document_of_a_report_holds_the_table_of_peers(tmp_path):
    ((found,), sentences) = (
        report_document([read(tmp_path, contest())])[name] for name in ("peers", "candidates")
    )
    assert found["models"] == ["gan"]
    ((ours,), (other,), (broken,)) = (found["peers"][name] for name in ("ours", "NNCF", "INC"))
    assert (ours["verdict"], ours["within"], ours["speedup"]) == ("slower", True, SLOWER)
    assert (other["verdict"], other["within"]) == ("faster", False)
    assert (broken["verdict"], broken["error"]) == ("failed", "it crashed")
    assert any("quality outside the budget" in each["sentence"] for each in sentences)


def test_rows_of_peers_may_have_an_error_instead_of_a_timing(tmp_path):
    failed = {"peer": "NNCF", "model": "cnn", "engine": "openvino", "error": "it crashed"}
    told = document(failed, schema=PEERS)
    html = render(tmp_path, told)
    assert "it crashed" in Page(html).text
    assert "failed" in Page(html).text
