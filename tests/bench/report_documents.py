"""Documents to report on, and the page read back."""

import base64
import io
import json
from html.parser import HTMLParser

from PIL import Image

from aigc_compress.bench.report import read_document, render_report

HOSTILE = "<script>alert(1)</script>\"'><img src=//evil.example/x>$\\frac{$ {{ 7*7 }}"


def row(model, **changes):
    """Return a row of `bench` with a timing and nothing else."""
    told = {"model": model, "engine": "ort", "batch": 1, "length": 1, "is_baseline": False}
    return {**told, "size_bytes": 1000, "latency_ms": 2.0, **changes}


def speedup(ratio, low, high):
    return {"ratio": ratio, "low": low, "high": high, "confidence": 0.95}


def quality(value, **changes):
    told = {"metric": "top-1 %", "higher_is_better": True, "value": value, "within": True}
    return {**told, "baseline": 90.0, "drop": 90.0 - value, "budget": 0.5, "samples": 10, **changes}


def png(side=2):
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def layer(op, ms, **changes):
    told = {"name": f"/{op}", "op": op, "ms": ms, "share": ms / 10, "macs": 5, "weight_bytes": 5}
    return {**told, "is_integer": False, "limit_ms": ms / 2, "efficiency": 0.5, **changes}


def document(*rows, schema="aigc-compress/bench/1", **changes):
    return {"schema": schema, "rows": list(rows), **changes}


def full_document():
    """Return a document in which every section has something to show."""
    calls = [[[1_900_000 + 1000 * i for i in range(20)]] * 2] * 2
    base = row(
        "cnn.onnx",
        is_baseline=True,
        size_bytes=4000,
        speedup=speedup(1.0, 0.97, 1.03),
        calls_ns=calls,
        quality=quality(90.0, exhibit={"kind": "text/plain", "data": "once upon"}),
        sha256="ab" * 32,
    )
    picture = base64.b64encode(png()).decode()
    candidate = row(
        "cnn.int8.onnx",
        latency_ms=1.0,
        speedup=speedup(2.0, 1.9, 2.1),
        blocks_ms=[[1.0, 1.1], [0.9, 1.0]],
        layers=[
            layer("ConvTranspose", 6.0),
            layer("QLinearConv", 3.0, is_integer=True),
            layer("QuantizeLinear", 1.0, macs=0),
        ],
        operators={
            "int8": {"QLinearConv": 1},
            "float": {"ConvTranspose": 1},
            "reasons": {"C": "y"},
        },
        quality=quality(
            89.8,
            exhibit={"kind": "image/png", "data": picture},
            details={"SQNR dB": {"value": 31.5, "low": 30, "high": 33, "samples": 8}, "n": 3},
        ),
    )
    trust = {"foreign_cores": 0.0, "steal_percent": 0.0, "complaint": ""}
    machine = {"cpu": "A CPU", "cores": 2, "versions": {"numpy": "2", "torch": None}}
    more = {"settings": {"threads": 1}, "feeds_sha256": ["cd" * 32], "notes": ["a note"]}
    return document(base, candidate, trust=trust, machine=machine, **more)


def read(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_document(path)


def render(tmp_path, *documents):
    return render_report([read(tmp_path, each) for each in documents])


class Page(HTMLParser):
    """Every tag with its attributes, and all text outside of tags."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data
