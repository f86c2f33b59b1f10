"""The whole of `quantize` needs no more memory where there are many calibration samples."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper

SAMPLE = (1, 3, 48, 48)
FEW, MANY = 100, 10_000
# Linux counts the memory of the process that started this one as its own, but for VmHWM.
QUANTIZE = """
import pathlib, re, resource, sys
from aigc_compress.cli import main
try:
    main()
finally:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        own = int(re.search("VmHWM:\\s+(\\d+) kB", status.read_text())[1])
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(max(own, children), file=sys.stderr)
"""


def write_net(path):
    """Write a small network of two convolutions and a Gemm."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 4, 4), "b1": (16,), "w2": (32, 16, 3, 3), "b2": (32,), "w3": (32, 10)}
    tables = [
        numpy_helper.from_array(rng.normal(0, 0.2, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], strides=[4, 4]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *SAMPLE[1:]])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "net", [x], [y], tables)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def write_samples(path, count):
    """Write windows of one long noise, each a few values behind the last: no two are equal."""
    size, step = int(np.prod(SAMPLE)), 7
    noise = np.random.default_rng(1).standard_normal(size + step * count, np.float32)
    windows = sliding_window_view(noise, size)[::step][:count]
    np.savez(path, x=windows.reshape(count, *SAMPLE))


def quantize(folder, count):
    """Return what `quantize` told of a run on so many samples, and its peak memory in bytes."""
    write_samples(folder / f"{count}.npz", count)
    options = ("--mode", "static", "--processes", "3", "--max-minutes", "60", "--json")
    files = ("net.onnx", "-o", f"{count}.onnx", "--calibration", f"{count}.npz")
    done = subprocess.run(
        [sys.executable, "-c", QUANTIZE, "quantize", *files, *options],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "AIGC_COMPRESS_CACHE": str(folder / "cache")},
    )
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return json.loads(done.stdout), unit * int(done.stderr.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_quantizing_with_ten_thousand_samples_takes_the_memory_of_a_hundred(tmp_path):
    write_net(tmp_path / "net.onnx")
    few, few_bytes = quantize(tmp_path, FEW)
    many, many_bytes = quantize(tmp_path, MANY)
    assert (few["quality"]["samples"], many["quality"]["samples"]) == (FEW, MANY)
    for told in few, many:  # ranges were read: without them there is no INT8 form to compare
        forms = [each for each in told["candidates"] if each["name"].startswith("INT8, static")]
        assert forms
        assert all(each["agreement_db"] is not None for each in forms)
    # Held in memory, all samples would more than double the peak.
    assert (MANY - FEW) * 4 * np.prod(SAMPLE) > few_bytes
    assert many_bytes <= 1.5 * few_bytes
    assert any("of the 10000 calibration samples" in note for note in many["notes"])
