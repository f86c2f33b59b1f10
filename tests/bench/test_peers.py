import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aigc_compress.bench.latency import LatencyPlan
from aigc_compress.bench.peers import PEERS, Peer, PeerOptions, compare_peers
from aigc_compress.bench.peers.conversion import Job, convert_apart
from aigc_compress.bench.peers.markdown import markdown_table
from aigc_compress.errors import InputFileError, PassError

QUICK = PeerOptions(samples=20, plan=LatencyPlan(processes=3, blocks=2, block_ms=1, warmup_ms=1))
STOCK = {peer.name: peer for peer in PEERS}
CONVERSIONS = """
import os, pathlib, shutil, sys, time

def copy(job):
    print("noise on stdout"); print("noise on stderr", file=sys.stderr)
    pathlib.Path("litter.txt").write_text("left behind")
    shutil.copy(job.graph, job.output)

def fail(job):
    raise ValueError("a first line\\nand a second one")

def die(job):
    os._exit(7)

def hang(job):
    time.sleep(60)

def nothing(job):
    pass

def rubbish(job):
    job.output.write_bytes(b"no model")

def silent(job):
    assert False

def unsorted(job):
    import onnx
    model = onnx.load(job.graph)
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, job.output)

def nan(job):
    import onnx
    from onnx import helper, numpy_helper
    import numpy as np
    model = onnx.load(job.graph)
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["raw" if each == name else each for each in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.float32("nan"), "nan"))
    model.graph.node.append(helper.make_node("Mul", ["raw", "nan"], [name]))
    onnx.save(model, job.output)
"""


@pytest.fixture
def invented(tmp_path, monkeypatch):
    """Return a function that makes a peer of one of the conversions above."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "invented_peers.py").write_text(CONVERSIONS)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return lambda name: Peer(name, "ort", f"invented_peers:{name}")


def job_in(folder):
    (folder / "fp32.onnx").write_bytes(b"a graph")
    return Job(folder / "x.pt", folder / "fp32.onnx", folder / "out.onnx", (), None)


@pytest.mark.slow
def test_a_peer_that_fails_is_a_row_and_the_others_go_on(cnn_pt, invented):
    names = ["fail", "silent", "die", "nothing", "rubbish", "unsorted", "copy"]
    peers = [STOCK["ort-fp32"], *map(invented, names)]
    result = compare_peers([cnn_pt], QUICK, peers=peers)
    rows = {row["peer"]: row for row in result.document()["rows"]}
    assert list(rows) == ["ort-fp32", *names]
    assert rows["fail"]["error"] == "ValueError: a first line"
    assert rows["silent"]["error"].startswith("AssertionError in silent (invented_peers.py, line ")
    assert "died (exit code 7)" in rows["die"]["error"]
    assert "wrote no file" in rows["nothing"]["error"]
    assert "rubbish.onnx failed:Protobuf parsing failed" in rows["rubbish"]["error"]
    for name in ("fail", "silent", "die", "nothing", "rubbish"):
        assert rows[name]["latency_ms"] is rows[name]["verdict"] is rows[name]["quality"] is None
    for name in ("ort-fp32", "copy", "unsorted"):
        assert rows[name]["error"] is None
        assert rows[name]["latency_ms"] > 0
    assert rows["copy"]["quality"]["drop"] == 0  # the same graph
    assert rows["copy"]["size_bytes"] == rows["ort-fp32"]["size_bytes"]


def test_outputs_that_are_no_numbers_are_an_error(scores_onnx, invented):
    peers = [STOCK["ort-fp32"], invented("nan")]
    _, row = compare_peers([scores_onnx], QUICK, peers=peers).document()["rows"]
    assert row["latency_ms"] is None or not row["quality"]["within"]


def test_a_missing_library_is_a_row_that_says_how_to_get_it(cnn_pt):
    peers = [STOCK["ort-fp32"], Peer("absent", "ort", "absent:convert", ("no_such_library",))]
    rows = compare_peers([cnn_pt], QUICK, peers=peers).document()["rows"]
    assert "no_such_library not installed: pip install" in rows[1]["error"]
    assert rows[0]["error"] is None


def test_a_conversion_may_print_and_leave_files_without_a_trace(tmp_path, invented, capfd):
    convert_apart(invented("copy").conversion, job_in(tmp_path))
    assert (tmp_path / "out.onnx").read_bytes() == b"a graph"
    assert not list(Path.cwd().glob("litter.txt"))
    assert capfd.readouterr() == ("", "")


def test_a_conversion_that_hangs_is_stopped(tmp_path, invented):
    with pytest.raises(PassError, match="longer than 3 s"):
        convert_apart(invented("hang").conversion, job_in(tmp_path), seconds=3)


def test_a_model_that_is_not_there_is_an_error_of_the_user(workplace):
    with pytest.raises(InputFileError):
        compare_peers(["nowhere.onnx"], QUICK)


def test_all_peers_get_the_same_calibration_feeds(cnn_pt, monkeypatch):
    seen = []

    def record(conversion, job):
        seen.append(job.calibration)
        raise PassError("seen")

    monkeypatch.setattr("aigc_compress.bench.peers.contest.convert_apart", record)
    compare_peers([cnn_pt], QUICK, peers=[p for p in PEERS if not p.missing])
    assert len(seen) > 1
    for feeds in seen[1:]:
        for one, other in zip(seen[0], feeds, strict=True):
            np.testing.assert_array_equal(one["image"], other["image"])


@pytest.mark.slow
def test_every_installed_peer_takes_a_tiny_model(cnn_pt):
    result = compare_peers([cnn_pt], QUICK)
    for row in result.rows:
        if row.peer.missing:
            assert "pip install" in row.error
        else:
            assert row.error is None, f"{row.peer.name}: {row.error}"


@pytest.mark.slow
def test_the_command_prints_one_document(cnn_pt, workplace):
    command = [sys.executable, "-m", "aigc_compress.bench.peers", str(cnn_pt), "--json"]
    options = ["--processes", "3", "--samples", "20", "-o", "peers.json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["schema"] == "aigc-compress/peers/1"
    assert {"machine", "trust", "settings", "rows", "notes"} <= set(document)
    assert [row["peer"] for row in document["rows"]] == [peer.name for peer in PEERS]
    assert json.loads(Path("peers.json").read_text())["rows"][0]["is_baseline"] is True


def test_the_command_refuses_a_missing_file_in_one_line(workplace):
    command = [sys.executable, "-m", "aigc_compress.bench.peers", "nowhere.onnx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_the_markdown_table_tells_who_is_faster_within_the_budget():
    def row(peer, ratio, verdict, *, within=True, error=None):
        measured = {"speedup": {"ratio": ratio}, "verdict": verdict, "quality": {"within": within}}
        named = {"model": "m.onnx", "peer": peer, "is_baseline": peer == "fp32", "error": error}
        return {**named, **measured}

    rows = [
        row("fp32", 1.01, "A/A: no difference shown"),
        row("good", 2.0, "faster"),
        row("bad", 3.0, "faster", within=False),
        row("slow", 0.5, "slower"),
        row("broken", None, None, error="it fails"),
    ]
    cells = [line.split("|")[2].strip() for line in markdown_table([{"rows": rows}]).splitlines()]
    assert cells == [
        "m", "---", "1 (A/A 1.01)", "**2.00**", "3.00, quality outside", "0.50, slower", "fails"
    ]  # fmt: skip
