import json
import shutil
import subprocess

import numpy as np
import onnx
import pytest
from conftest import graph

from aigc_compress.analysis import AnalyzeOptions, analyze, render_analysis

LAYERS = """layers (float[2, 3, 6, 6] x, float[4, 3, 3, 3] w) => (float[2, 4, 6, 6] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    y = Relu (a)
}"""


@pytest.fixture
def layers_onnx(workplace):
    model = graph(LAYERS)
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = workplace / "layers.onnx"
    onnx.save(model, path)
    return path


def test_a_table_and_a_summary_stand_on_stdout(run_cli, layers_onnx):
    ending = run_cli("analyze", layers_onnx)
    assert ending.code == 0, ending.stderr
    assert "Conv+Relu" in ending.stdout
    assert "dB alone" in ending.stdout
    assert "this machine" in ending.stdout
    assert "On x86 without VNNI" in ending.stdout
    assert "seeded noise" in ending.stderr  # no data was given


def test_json_is_one_document(run_cli, layers_onnx):
    ending = run_cli("analyze", layers_onnx, "--json", "--seed", "3")
    document = json.loads(ending.stdout)
    assert document["schema"] == "aigc-compress/analyze/1"
    assert document["seed"] == 3
    assert [each["operator"] for each in document["layers"]] == ["Conv+Relu"]


def test_the_page_is_written_and_its_path_printed(run_cli, workplace, layers_onnx):
    ending = run_cli("analyze", layers_onnx, "-o", "page.html")
    assert ending.code == 0, ending.stderr
    assert ending.stdout.splitlines()[-1] == "page.html"
    page = (workplace / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "Conv+Relu" in page


def test_no_time_leaves_layers_out_and_says_so(run_cli, layers_onnx):
    ending = run_cli("analyze", layers_onnx, "--max-minutes", "0")
    assert ending.code == 0, ending.stderr
    assert "not measured for want of time" in ending.stderr


def test_nothing_to_quantize_is_a_good_result(run_cli, workplace):
    onnx.save(graph("g (float[2] x) => (float[2] y) { y = Tanh (x) }"), workplace / "tanh.onnx")
    ending = run_cli("analyze", "tanh.onnx")
    assert ending.code == 0, ending.stderr
    assert ending.stdout.strip() == "Nothing to quantize."
    assert "Tanh" in ending.stderr


@pytest.mark.parametrize("name", ["page.txt", "page", "page.json"])
def test_a_page_that_is_no_html_is_refused(refuse, layers_onnx, name):
    assert "must end in .html" in refuse("analyze", layers_onnx, "-o", name, code=2)


def test_a_page_that_cannot_be_written_is_refused_before_any_work(refuse, layers_onnx):
    assert "there is no folder" in refuse("analyze", layers_onnx, "-o", "no/page.html", code=1)


def test_a_missing_model_is_refused(refuse):
    assert "no.onnx" in refuse("analyze", "no.onnx", code=2)


def test_feeds_of_another_shape_are_refused(refuse, workplace, layers_onnx):
    np.savez(workplace / "feeds.npz", x=np.zeros((4, 2, 9, 6, 6), np.float32))
    assert "x" in refuse("analyze", layers_onnx, "--evaluation", "feeds.npz", code=2)


@pytest.mark.parametrize("kind", [pytest.param("gan", marks=pytest.mark.slow), "cnn"])
def test_the_shipped_kinds_are_analyzed(run_cli, request, kind):
    ending = run_cli("analyze", request.getfixturevalue(f"{kind}_pt"), "--json")
    assert ending.code == 0, ending.stderr
    document = json.loads(ending.stdout)
    assert document["layers"]
    assert document["whole_db"]["both_db"] is not None


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_the_page_without_an_error_or_a_scroll_sideways(
    tmp_path, layers_onnx, width
):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    page = render_analysis(analyze(layers_onnx, AnalyzeOptions()))
    (tmp_path / "page.html").write_text(page)
    # A headless window is at least 500 pixels wide, a frame is as narrow as it is told.
    frame = f"""<iframe id="f" src="page.html" width="{width}" height="900"></iframe>
    <p id="out"></p><script>onload = () => {{
    const root = document.getElementById("f").contentDocument.documentElement;
    const beyond = root.scrollWidth - root.clientWidth;
    document.getElementById("out").textContent = "sideways " + beyond; }};</script>"""
    (tmp_path / "frame.html").write_text(frame)
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files")
    told = (f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr")
    address = (tmp_path / "frame.html").as_uri()
    command = [chromium, *flags, *told, "--window-size=1600,1000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "sideways 0" in done.stdout, done.stdout[-400:]
    assert ":CONSOLE" not in done.stderr, done.stderr
