import json
import subprocess
import sys

import pytest

ROW = {"model": "cnn.onnx", "engine": "ort", "is_baseline": True, "latency_ms": 1.0}
RESULT = {"schema": "aigc-compress/bench/1", "rows": [ROW]}


@pytest.fixture
def result(workplace):
    path = workplace / "result.json"
    path.write_text(json.dumps(RESULT))
    return path


def test_a_result_becomes_a_page_and_its_path_is_printed(run_cli, workplace, result):
    ending = run_cli("report", result, "-o", "page.html")
    assert ending.code == 0, ending.stderr
    assert ending.stdout == "page.html\n"
    assert (workplace / "page.html").read_text().startswith("<!doctype html>")


def test_several_results_become_one_page(run_cli, workplace, result):
    other = workplace / "peers.json"
    failed = {"model": "cnn", "engine": "ort", "peer": "NNCF", "error": "it crashed"}
    other.write_text(json.dumps({"schema": "aigc-compress/peers/1", "rows": [failed]}))
    assert run_cli("report", result, other).code == 0
    page = (workplace / "report.html").read_text()
    assert "result.json" in page
    assert "it crashed" in page


def test_json_is_printed_instead_of_a_page_or_beside_one(run_cli, workplace, result):
    ending = run_cli("report", result, "--json")
    assert ending.code == 0, ending.stderr
    found = json.loads(ending.stdout)
    assert found["schema"] == "aigc-compress/report/1"
    assert found["rows"][0]["latency_ms"] == ROW["latency_ms"]
    assert not list(workplace.glob("*.html"))
    both = run_cli("report", result, "--json", "-o", "page.html")
    assert both.stdout == ending.stdout
    assert (workplace / "page.html").exists()


def test_a_report_needs_a_result(run_cli):
    assert run_cli("report").code == 2


@pytest.mark.parametrize("content", ["", "[1, 2", '{"schema": "x"}', '{"rows": []}', "NaN"])
def test_a_bad_result_is_refused_and_no_page_is_written(refuse, workplace, result, content):
    (workplace / "bad.json").write_text(content)
    assert "bad.json" in refuse("report", result, "bad.json", "-o", "page.html", code=2)


def test_a_missing_result_is_refused(refuse):
    assert "There is no file no.json" in refuse("report", "no.json", code=2)


def test_a_page_that_cannot_be_written_is_refused(refuse, result):
    assert "there is no folder" in refuse("report", result, "-o", "no/page.html", code=1)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(workplace, result, package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\nfrom aigc_compress.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "report", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert f"{package} is not installed: pip install 'aigc-compress[compress]'" in done.stderr
    assert not (workplace / "report.html").exists()
