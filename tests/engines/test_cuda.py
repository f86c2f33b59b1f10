"""What runs on an NVIDIA GPU alone."""

import numpy as np
import onnxruntime
import pytest

from aigc_compress.api import to_onnx
from aigc_compress.engines import ENGINES, HasDeviceClock
from aigc_compress.engines.cuda import describe_gpu, has_cuda_device
from aigc_compress.loading import load_artifact
from aigc_compress.workload import FeedOptions, make_workload

NEEDED = pytest.mark.skipif(not has_cuda_device(), reason="torch sees no CUDA device")
ON_GPU = [name for name, engine in ENGINES.items() if engine.is_on_gpu]


@pytest.mark.gpu
@NEEDED
@pytest.mark.parametrize("engine", ON_GPU)
def test_the_devices_clock_counts_work_that_grows_with_the_batch(engine):
    found = ENGINES[engine].availability()
    if not found.is_available:
        pytest.skip(found.detail)
    artifact = load_artifact("gan")
    workload = make_workload(artifact, FeedOptions())
    ready = artifact if ENGINES[engine].stage == "torch" else to_onnx(artifact, workload)
    session = ENGINES[engine].load(ready, threads=1)
    assert isinstance(session, HasDeviceClock)
    spent = {}
    for batch in (1, 2048 if engine != "trt" else 64):
        timer = session.device_timer(workload.timing_feeds(batch=batch, length=1, seed=0))
        timer(5)
        times = timer(20)
        assert len(times) == 20
        spent[batch] = float(np.median(times))
    small, large = spent.values()
    assert 1e3 < small < 1e8  # nanoseconds
    assert large > small


@pytest.mark.gpu
@NEEDED
def test_the_gpu_is_described():
    told = describe_gpu()
    assert told["gpu"]
    assert told["gpu_target"].startswith("sm_")


@pytest.mark.skipif(has_cuda_device(), reason="there is one")
def test_without_a_gpu_engines_say_what_is_missing():
    assert describe_gpu() == {}
    for name in ON_GPU:
        found = ENGINES[name].availability()
        assert not found.is_available
        assert "CUDA" in found.detail or "no provider" in found.detail


def test_a_provider_without_the_tensorrt_it_wants_is_missing(tmp_path, monkeypatch):
    (tmp_path / "capi").mkdir()
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"]
    )
    engine = ENGINES["ort-tensorrt"]
    assert "its own library" in engine.availability().detail
    provider = tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so"
    provider.write_bytes(b"\0libc.so.6\0libnvinfer.so.99\0")
    found = engine.availability()
    assert not found.is_available
    assert "libnvinfer.so.99" in found.detail
    assert "TensorRT" in found.install
