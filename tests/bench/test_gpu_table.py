"""The command that compares engines on a GPU."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aigc_compress.bench.gpu.__main__ import app, gpu_engines
from aigc_compress.engines.cuda import has_cuda_device
from aigc_compress.errors import NotOnThisMachineError

MEASURED = Path(__file__).parents[2] / "bench/results/gpu-gan-h200.json"


def test_a_measured_document_becomes_a_table():
    done = CliRunner().invoke(app, ["--markdown", str(MEASURED)])
    assert done.exit_code == 0
    assert "**gan** on NVIDIA H200" in done.output
    rows = [line for line in done.output.splitlines() if line.startswith("| 1 |")]
    assert len(rows) == len(json.loads(MEASURED.read_text())["models"][0]["rows"])
    (recorded,) = [row for row in rows if "| torch-cuda-graph |" in row]
    assert "| 0.0692 | 6.66x [4.29, 10.33] | 14,448 |" in recorded
    assert "- left out: trt: neither tensorrt nor tensorrt_rtx is installed" in done.output


def test_the_readme_shows_what_was_measured():
    told = (MEASURED.parents[1] / "gpu/README.md").read_text()
    for row in json.loads(MEASURED.read_text())["models"][0]["rows"]:
        assert f"{row['latency_ms']:.3f}" in told
        assert f"{row['speedup']['ratio']:.2f}x" in told


@pytest.mark.skipif(has_cuda_device(), reason="there is one")
def test_without_a_gpu_it_says_so(workplace):
    with pytest.raises(NotOnThisMachineError, match="torch sees no CUDA device"):
        gpu_engines()
    assert isinstance(CliRunner().invoke(app, []).exception, NotOnThisMachineError)
    assert not (workplace / "gpu.json").exists()
