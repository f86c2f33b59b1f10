import numpy as np
import pytest
import torch
from conftest import tiny_checkpoint

from aigc_compress.api import to_onnx
from aigc_compress.checkpoint import write_checkpoint
from aigc_compress.engines import ENGINES, get_engine
from aigc_compress.errors import NotOnThisMachineError, PassError, UsageError
from aigc_compress.loading import load_artifact
from aigc_compress.workload import FeedOptions, make_workload

# torch.compile imports what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
PRESENT = [name for name, engine in ENGINES.items() if engine.availability().is_available]


def loaded(tmp_path, kind):
    path = tmp_path / f"{kind}.pt"
    write_checkpoint(path, tiny_checkpoint(kind))
    artifact = load_artifact(path)
    return artifact, make_workload(artifact, FeedOptions())


@pytest.mark.parametrize("name", PRESENT)
@pytest.mark.parametrize("kind", ["gan", "cnn"])
def test_every_engine_gives_the_modules_own_numbers_at_several_batch_sizes(tmp_path, kind, name):
    artifact, workload = loaded(tmp_path, kind)
    engine = get_engine(name)
    ready = artifact if engine.stage == "torch" else to_onnx(artifact, workload)
    runner = engine.load(ready, threads=1)
    for batch in (1, 5):
        feeds = workload.timing_feeds(batch=batch, length=1, seed=batch)
        (input_name,), (output_name,) = artifact.payload.input_names, artifact.payload.output_names
        with torch.inference_mode():
            wanted = artifact.payload(torch.from_numpy(feeds[input_name])).numpy()
        np.testing.assert_allclose(runner.run(feeds)[output_name], wanted, rtol=1e-4, atol=1e-5)


def test_onnx_runtimes_own_failure_is_one_error_of_ours(tmp_path):
    artifact, workload = loaded(tmp_path, "cnn")
    runner = get_engine("ort").load(to_onnx(artifact, workload), threads=1)
    with pytest.raises(PassError, match="does not run"):
        runner.run({"image": np.zeros((1, 2, 28, 28), np.float32)})


def test_an_engine_that_is_missing_tells_how_to_get_it():
    for name, engine in ENGINES.items():
        found = engine.availability()
        assert found.detail
        if not found.is_available:
            with pytest.raises(NotOnThisMachineError) as told:
                get_engine(name)
            assert found.install in str(told.value)
            assert found.install or "an NVIDIA GPU" in found.detail


def test_an_unknown_engine_is_refused():
    with pytest.raises(UsageError, match=f"Known: {', '.join(sorted(ENGINES))}\\."):
        get_engine("tensorflow")
