"""The page: complete, safe, self-contained."""

import copy
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from report_documents import HOSTILE, Page, document, full_document, quality, render, row, speedup


def test_the_sentence_of_a_candidate_stands_in_the_page(tmp_path):
    text = " ".join(Page(render(tmp_path, full_document())).text.split())
    times, dash = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
    told = f"is 4.0{times} smaller, 2.00{times} faster (1.90{dash}2.10), quality within budget."
    assert f"cnn.int8 {told}" in text


def test_a_full_document_shows_every_section(tmp_path):
    text = " ".join(Page(render(tmp_path, full_document())).text.split())
    for told in (
        "cnn: 0.97\N{EN DASH}1.03",
        "on the front",
        "Costly operators on floats: ConvTranspose (60% of the time).",
        "Quantizing and dequantizing: 10.0% of the time, in 1 node.",
        "once upon",
        "SQNR dB",
        "30.00 to 33.00",
        "a note",
        "ab" * 32,
        "cd" * 32,
    ):
        assert told in text, told


def test_every_part_that_is_missing_is_named(tmp_path):
    text = Page(render(tmp_path, document(row("a.onnx")))).text
    for told in (
        "the A/A control",
        "speed beside a baseline",
        "single times",
        "quality",
        "the time of single layers",
        "something to look at or read",
        "operators at run time",
        "digests of the model files",
    ):
        assert f"Not measured: {told}." in text, told


def test_a_part_that_some_models_lack_is_named_with_them(tmp_path):
    text = Page(render(tmp_path, full_document())).text
    assert "Not measured: the time of single layers of cnn." in text


def test_a_worse_candidate_is_called_so(tmp_path):
    told = full_document()
    told["rows"][1] |= {
        "speedup": speedup(0.5, 0.4, 0.6),
        "quality": quality(80.0, within=False),
    }
    text = Page(render(tmp_path, told)).text
    assert "slower" in text
    assert "quality outside the budget" in text


def test_a_busy_machine_is_told_at_the_top(tmp_path):
    told = full_document()
    told["trust"]["complaint"] = "others kept 1 core busy"
    text = Page(render(tmp_path, told)).text
    assert text.index("others kept 1 core busy") < text.index("All rows")


def hostile_document():
    """Return a full document in which every text is hostile."""

    def spoil(value, key=""):
        if isinstance(value, dict):
            kept = ("schema", "kind", "data")
            names = {name: name for name in value}
            if key in ("details", "versions", "settings", "int8", "float", "reasons"):
                names = {name: HOSTILE + name for name in value}
            return {
                names[name]: each if name in kept else spoil(each, name)
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [spoil(each) for each in value]
        return HOSTILE if isinstance(value, str) else value

    told = spoil(full_document())
    told["rows"][0]["quality"]["exhibit"]["data"] = HOSTILE + "</pre></body>"
    return told


def test_hostile_texts_stay_texts(tmp_path):
    told = hostile_document()
    failed = {"model": HOSTILE, "engine": HOSTILE, "peer": HOSTILE, "error": HOSTILE}
    told["rows"].append(failed)
    calm, spoilt = Page(render(tmp_path, full_document())), Page(render(tmp_path, told))
    assert {tag for tag, _ in spoilt.tags} <= {tag for tag, _ in calm.tags}
    assert all(not name.startswith("on") for _, given in spoilt.tags for name in given)
    assert spoilt.text.count("alert(1)") > 20
    assert "49" not in re.findall(r"\$ (\S+)", spoilt.text)


def test_control_characters_and_turned_text_are_replaced(tmp_path):
    told = document(row("a\u202e\x07b", latency_ms=1.0))
    html = render(tmp_path, told)
    assert "\u202e" not in html
    assert "\x07" not in html


def loads_of(html):
    """Return every address that a browser would load."""
    page = Page(html)
    names = ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "background")
    given = [each[name] for _, each in page.tags for name in names if name in each]
    return given + re.findall(r"url\(\s*['\"]?([^)'\"]*)", html)


@pytest.mark.parametrize("make", [full_document, hostile_document])
def test_the_page_loads_nothing(tmp_path, make):
    html = render(tmp_path, make())
    loads = loads_of(html)
    assert loads
    assert all(each.startswith(("#", "data:")) for each in loads if "evil" not in each), loads
    tags = {tag for tag, _ in Page(html).tags}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    assert "@import" not in html


def test_ids_are_unique_and_references_lead_somewhere(tmp_path):
    page = Page(render(tmp_path, full_document(), full_document()))
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(ids) == len(set(ids))
    links = [g["href"] for _, g in page.tags if g.get("href", "").startswith("#")]
    assert {each[1:] for each in links} <= set(ids)


def test_charts_take_their_colours_from_the_page(tmp_path):
    html = render(tmp_path, full_document())
    charts = re.findall(r"<svg class=\"chart.*?</svg>", html, re.DOTALL)
    assert charts
    for chart in charts:
        assert "var(--ink)" in chart
        assert set(re.findall(r"#[0-9a-f]{6}", chart)) <= {"#000000"}, "a colour of its own"


def test_the_same_documents_make_the_same_page(tmp_path):
    assert render(tmp_path, full_document()) == render(tmp_path, full_document())


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_extreme_but_valid_numbers_are_drawn(tmp_path, scale):
    told = copy.deepcopy(full_document())
    for each in told["rows"]:
        each["latency_ms"] = scale
        each["speedup"] = speedup(scale, scale / 2, scale * 2)
        each["calls_ns"] = [[[scale * 1e6] * 3]]
        each["quality"]["value"] = scale
    assert "Benchmark report" in render(tmp_path, told)


def test_many_rows_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    rows = [row(f"m{i}.onnx", latency_ms=float(rng.random() + 1)) for i in range(30)]
    assert "m29" in render(tmp_path, document(*rows))


@pytest.mark.browser
@pytest.mark.parametrize("make", [full_document, hostile_document])
def test_a_browser_opens_the_page_without_an_error_or_a_request(tmp_path, make):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    (tmp_path / "page.html").write_text(render(tmp_path, make()))
    log = tmp_path / "net.json"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
    told = (f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr")
    command = [chromium, *flags, *told, f"--log-net-log={log}", "--dump-dom"]
    address = (tmp_path / "page.html").as_uri()
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120)
    assert "Benchmark report" in done.stdout
    assert ":CONSOLE" not in done.stderr, done.stderr
    assert addresses_of_page(log, address) == set()


def addresses_of_page(log, address):
    """Return the addresses that a net log shows as asked for by the page of that address.

    Chromium looks for updates of its own; those requests have no initiator.
    """
    text = log.read_text()
    text = text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}"
    asked = set()
    for event in json.loads(text)["events"]:
        told = event.get("params", {})
        if str(told.get("initiator", "not an origin")) in ("null", "file://", address):
            asked.add(told.get("url"))
    return {each for each in asked if each and not each.startswith(("file:", "data:"))}
