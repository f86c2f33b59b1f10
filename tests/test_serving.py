"""Repositories for Triton, checked against the server's own published schema."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from conftest import graph, tiny_checkpoint
from google.protobuf import text_format

from aigc_compress.artifact import Artifact, read_onnx, save_onnx
from aigc_compress.checkpoint import write_checkpoint
from aigc_compress.errors import OutputError, UsageError
from aigc_compress.serving import export_repository


@pytest.fixture(scope="module")
def schema():
    """Return the classes of Triton's model_config.proto, without its gRPC client."""
    found = importlib.util.find_spec("tritonclient")
    if found is None:
        pytest.skip("needs tritonclient, which holds the schema")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(schema, folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def test_a_batched_model_is_joined_up_to_the_measured_batch(schema, workplace):
    write_checkpoint(workplace / "gan.pt", tiny_checkpoint("gan"))
    made = export_repository(workplace / "gan.pt", workplace / "repository")
    config = parsed(schema, made.folder)
    assert config.name == made.folder.name == "gan"
    assert config.platform == "onnxruntime_onnx"
    assert set(made.samples_per_second) == {1, 2, 4, 8, 16, 32}
    rates = made.samples_per_second
    assert rates[made.largest_batch] >= 0.95 * max(rates.values())
    assert config.max_batch_size == made.largest_batch
    assert list(config.input[0].dims) == [4]
    assert list(config.output[0].dims) == [1, 28, 28]
    assert config.input[0].data_type == schema.TYPE_FP32
    if made.largest_batch > 1:
        assert list(config.dynamic_batching.preferred_batch_size) == [made.largest_batch]
    assert read_onnx(made.folder / "1" / "model.onnx").task == "gan"


def test_a_model_whose_states_have_the_batch_elsewhere_is_served_one_by_one(schema, workplace):
    made = export_repository("rnn", workplace / "repository", name="writer")
    config = parsed(schema, made.folder)
    assert (config.name, config.max_batch_size, made.largest_batch) == ("writer", 0, 0)
    tensors = {each.name: list(each.dims) for each in config.input}
    assert tensors["tokens"] == [-1, -1]
    assert config.input[0].data_type == schema.TYPE_INT64


def test_feeds_of_a_file_measure_the_batch_that_they_have(schema, workplace):
    text = "net (float[batch,3] x) => (float[batch] y) <int64[1] a = {1}>"
    text += "{ y = ReduceSum<keepdims=0>(x, a) }"
    save_onnx(Artifact("onnx", graph(text)), workplace / "net.onnx")
    made = export_repository(workplace / "net.onnx", workplace / "models" / "all")
    config = parsed(schema, made.folder)
    assert list(config.output[0].dims) == [1]
    assert list(config.output[0].reshape.shape) == []


@pytest.mark.tensorrt
def test_an_engine_is_served_on_a_gpu(schema, workplace):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
    from aigc_compress.building import EngineOptions, build

    write_checkpoint(workplace / "cnn.pt", tiny_checkpoint("cnn"))
    built = build(workplace / "cnn.pt", EngineOptions(), workplace / "cnn.engine")
    made = export_repository(workplace / "cnn.engine", workplace / "repository")
    config = parsed(schema, made.folder)
    assert config.platform == "tensorrt_plan"
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert (made.folder / "1" / "model.plan").read_bytes() == built.plan


def test_what_is_there_stays(workplace):
    write_checkpoint(workplace / "gan.pt", tiny_checkpoint("gan"))
    (workplace / "repository" / "gan").mkdir(parents=True)
    with pytest.raises(OutputError, match="is there already"):
        export_repository(workplace / "gan.pt", workplace / "repository")
    with pytest.raises(UsageError, match="no name of a model"):
        export_repository(workplace / "gan.pt", workplace / "repository", name="a/b")
    assert [*(workplace / "repository").iterdir()] == [workplace / "repository" / "gan"]


def test_the_command_line_adds_a_model(run_cli, refuse, workplace):
    text = "net (float[2,3] x) => (float[2,3] y) { y = Relu(x) }"
    save_onnx(Artifact("onnx", graph(text)), workplace / "net.onnx")
    np.savez(workplace / "feeds.npz", x=np.ones((2, 2, 3), np.float32))
    done = run_cli("export", "net.onnx", "--to", "triton", "-o", "models")
    assert done.code == 0, done.stderr
    assert done.stdout == "models/net\n"
    assert "one by one" in done.stderr
    refuse("export", "net.onnx", "--to", "elsewhere", code=2)
    refuse("export", "net.onnx", "--to", "triton", "-o", "models", code=1)
