"""A search that is killed or interrupted leaves whole files, and the same command goes on."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import CLI, run_process
from onnx import TensorProto, helper, numpy_helper

COMMAND = ("quantize", "net.onnx", "-o", "net.int8.onnx", "--processes", "3", "--json")


def wide_net():
    """Four convolutions of 64 channels: integers pay, and a search takes seconds."""
    rng = np.random.default_rng(0)
    nodes, constants, name = [], [], "x"
    for index in range(4):
        weights = (rng.normal(size=(64, 64, 3, 3)) / 24).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"w{index}"))
        conv = ("Conv", [name, f"w{index}"], [f"c{index}"])
        nodes.append(helper.make_node(*conv, pads=[1, 1, 1, 1], name=f"conv{index}"))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        name = f"r{index}"
    shape = [1, 64, 16, 16]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "net", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture
def started(workplace, monkeypatch):
    """Return a function that starts the search and sends it a signal after some seconds."""
    monkeypatch.setenv("AIGC_COMPRESS_CACHE", str(workplace / "cache"))
    onnx.save(wide_net(), workplace / "net.onnx")

    def start(seconds, sign):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([*CLI, *COMMAND], cwd=workplace, **pipes)
        time.sleep(seconds)
        process.send_signal(sign)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return start


def kept(folder):
    return {each.name: each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.slow
def test_a_killed_search_goes_on_and_a_finished_one_gives_the_same_file(started, workplace):
    for seconds in (2.0, 5.0):
        started(seconds, signal.SIGKILL)
        for path in workplace.glob("*.onnx"):
            onnxruntime.InferenceSession(path)  # whole, whatever is there
    before = kept(workplace / "cache")
    done = run_process(*COMMAND, cwd=workplace)
    assert done.code == 0, done.stderr
    after = kept(workplace / "cache")
    assert {name: after[name] for name in before if ".part" not in name}.items() <= after.items()
    first = (workplace / "net.int8.onnx").read_bytes()
    told = json.loads(done.stdout)
    assert not told["shipped"].startswith("FP32, ") or told["is_fallback"]
    again = run_process(*COMMAND, cwd=workplace)
    assert again.code == 0, again.stderr
    assert (workplace / "net.int8.onnx").read_bytes() == first
    assert any("--fresh" in note for note in json.loads(again.stdout)["notes"])
    assert kept(workplace / "cache") == after  # nothing was measured again


@pytest.mark.slow
def test_ctrl_c_ends_with_code_130_and_says_what_is_there(started, workplace):
    code, out, err = started(4.0, signal.SIGINT)
    if code == 0:
        pytest.skip("this machine was done before it was interrupted")
    assert code == 130
    assert "Interrupted" in err
    assert out == ""
    assert ("net.int8.onnx holds the best so far" in err) == (workplace / "net.int8.onnx").exists()
    assert not [each for each in os.listdir(workplace) if each.endswith(".part")]


@pytest.mark.slow
def test_a_search_of_no_time_says_that_it_was_cut(started, workplace):
    done = run_process(*COMMAND, "--max-minutes", "0", cwd=workplace)
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert [each["name"] for each in told["candidates"]] == ["FP32, folded"]
    assert any("ended after 0 minutes" in note for note in told["notes"])
