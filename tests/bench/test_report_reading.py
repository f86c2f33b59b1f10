"""Documents and their pictures, read and refused."""

import base64
import json

import pytest
from report_documents import document, full_document, png, quality, read, row, speedup

from aigc_compress.bench.report import read_document
from aigc_compress.bench.report.exhibit import MOST_PNG_BYTES, check_png
from aigc_compress.errors import InputFileError


def refusal(tmp_path, content):
    with pytest.raises(InputFileError) as refused:
        read(tmp_path, content)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_document_reads_back_with_its_numbers(tmp_path):
    read_back = read(tmp_path, full_document())
    assert [each.model for each in read_back.rows] == ["cnn.onnx", "cnn.int8.onnx"]
    assert read_back.rows[1].speedup.verdict == "faster"
    assert read_back.name == "result.json"


def test_fields_of_a_newer_version_are_passed_over(tmp_path):
    assert read(tmp_path, document(row("a.onnx", colour="red"), weather="fine")).rows


def test_an_unknown_schema_is_refused_with_the_known_ones(tmp_path):
    message = refusal(tmp_path, document(row("a"), schema="aigc-compress/bench/9"))
    assert "aigc-compress/bench/9" in message
    assert "aigc-compress/peers/1" in message


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 1}', "\x00", "[" * 100_000])
def test_what_is_no_document_is_refused(tmp_path, content):
    assert "is no result of ours" in refusal(tmp_path, content)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "bad.json").write_bytes(b'{"schema": "\xff\xfe"}')
    with pytest.raises(InputFileError):
        read_document(tmp_path / "bad.json")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_truncated_document_is_refused(tmp_path, share):
    text = json.dumps(full_document())
    refusal(tmp_path, text[: int(len(text) * share)])


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputFileError, match="There is no file"):
        read_document(tmp_path / "no.json")
    with pytest.raises(InputFileError, match="is a folder"):
        read_document(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_ms", float("nan")),
        ("latency_ms", float("inf")),
        ("latency_ms", -1.0),
        ("latency_ms", 0),
        ("latency_ms", "2.0"),
        ("latency_ms", 1e300),
        ("latency_ms", None),
        ("size_bytes", 10**30),
        ("batch", 0),
        ("model", ""),
        ("model", 5),
        ("model", "x" * 10_000),
        ("speedup", speedup(0, 0, 0)),
        ("calls_ns", [1, 2]),
        ("calls_ns", [[[float("nan")]]]),
        ("layers", [{"name": "a"}]),
        ("quality", quality(90.0, within="yes")),
        ("quality", quality(90.0, exhibit={"kind": "text/html", "data": "<b>"})),
    ],
)
def test_a_wrong_field_is_refused_and_named(tmp_path, name, value):
    assert name in refusal(tmp_path, document(row("a.onnx") | {name: value}))


def test_a_fault_under_a_hostile_name_is_told_on_one_clean_line(tmp_path):
    told = row("a", percentiles_ms={"p\n\x1b[31m" + "x" * 400: {"value": -1}})
    message = refusal(tmp_path, document(told))
    assert "\x1b" not in message
    assert len(message) < 1000


def test_a_document_without_rows_is_refused(tmp_path):
    assert "rows" in refusal(tmp_path, document())


def test_a_whole_png_passes():
    check_png(png())


def claim_size(content, side):
    return content[:16] + side.to_bytes(4, "big") * 2 + content[24:]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"GIF89a", "no PNG"),
        (b"<svg onload=alert(1)>", "no PNG"),
        (png()[:-4], "cut off"),
        (claim_size(png(), 100_000), "pixels a side"),
        (png()[:40] + bytes(MOST_PNG_BYTES) + png()[-12:], "MB"),
    ],
)
def test_a_picture_that_is_no_small_png_is_refused(tmp_path, content, complaint):
    data = base64.b64encode(content).decode()
    told = row("a", quality=quality(1.0, exhibit={"kind": "image/png", "data": data}))
    assert complaint in refusal(tmp_path, document(told))


def test_a_picture_that_is_no_base64_is_refused(tmp_path):
    told = row("a", quality=quality(1.0, exhibit={"kind": "image/png", "data": '" onload="x'}))
    assert "base64" in refusal(tmp_path, document(told))
