from collections import Counter

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from aigc_compress.artifact import Artifact, graph_tensors, read_onnx, save_onnx
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError
from aigc_compress.models.cnn import CnnConfig, ResidualNetwork
from aigc_compress.models.gan import GanConfig, Generator
from aigc_compress.models.rnn import CharacterModel, RnnConfig
from aigc_compress.models.tasks import make_task
from aigc_compress.passes import Context, ExportConfig
from aigc_compress.passes.export import ExportPass, _mark_dynamic_outputs
from aigc_compress.workload import TaskWorkload

ALPHABET = "\n !'(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWYZabcdefghijklmnopqrstuvwxyz"
SMALL = {
    "cnn": (ResidualNetwork, CnnConfig(widths=(4, 8), blocks=(1, 1))),
    "gan": (Generator, GanConfig(latent=6, widths=(4, 4, 4))),
    "rnn": (CharacterModel, RnnConfig(alphabet=ALPHABET, hidden=8, embedding=4)),
    "gru": (CharacterModel, RnnConfig(alphabet=ALPHABET, hidden=8, embedding=4, cell="gru")),
}


def with_statistics(module):
    """Give BatchNorm layers statistics that a wrong fold would not survive."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                norm.weight.uniform_(0.5, 2, generator=generator)
                norm.bias.normal_(generator=generator)
    return module.eval()


def exported(name):
    cls, config = SMALL[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = with_statistics(cls(config))
    task = make_task("rnn" if name == "gru" else name, config.model_dump())
    axes = {k: dict(v) for k, v in task.dynamic_axes().items()}
    context = Context(TaskWorkload(task).check_feeds())
    artifact = ExportPass().run(Artifact("torch", module), ExportConfig(dynamic_axes=axes), context)
    return module, task, artifact


@pytest.mark.parametrize("name", SMALL)
def test_exported_graph_gives_torchs_numbers_at_sizes_it_was_not_exported_with(name):
    module, task, artifact = exported(name)
    session = OrtSession(artifact, threads=1)
    for batch, length in ((1, 1), (4, 11)):
        feeds = task.feeds(batch, seed=9, length=length)
        with torch.inference_mode():
            wanted = module(*(torch.from_numpy(feeds[n]) for n in module.input_names))
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        found = session.run(feeds)
        for key, value in zip(module.output_names, wanted, strict=True):
            np.testing.assert_allclose(found[key], value.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_batch_norm_is_gone_from_the_exported_graph(name):
    _, _, artifact = exported(name)
    assert "BatchNormalization" not in Counter(n.op_type for n in artifact.payload.graph.node)


def test_rnn_graph_declares_batch_and_time_as_dynamic_in_and_out():
    _, _, artifact = exported("rnn")
    inputs, outputs = graph_tensors(artifact.payload)
    assert [spec.shape for spec in inputs] == [("batch", "time"), (2, "batch", 8), (2, "batch", 8)]
    assert outputs[0].shape == ("batch", "time", len(ALPHABET))
    assert outputs[1].shape == (2, "batch", 8)


def test_provenance_survives_the_file(tmp_path):
    _, _, artifact = exported("gan")
    path = tmp_path / "gan.onnx"
    save_onnx(artifact, path)
    again = read_onnx(path)
    assert again.history == artifact.history
    assert again.history[-1].name == "export"


class Counted(nn.Module):
    """Branches on its data, which torch.export refuses."""

    input_names = ("x",)
    output_names = ("y",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight if x.sum() > 0 else x


def test_a_module_that_torch_cannot_export_is_one_clear_error():
    context = Context(({"x": np.ones((2, 3), np.float32)},))
    with pytest.raises(PassError, match="cannot export"):
        ExportPass().run(Artifact("torch", Counted()), ExportConfig(), context)


def test_outputs_declared_with_another_rank_are_declared_anew():
    """As torch 2.11 declares the states of an LSTM."""
    declared = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, "batch"])]
    model = helper.make_model(helper.make_graph([], "g", [], declared))
    feeds = [{"x": np.zeros((size, 3), np.float32)} for size in (2, 5)]
    references = [{"y": np.zeros((4, len(each["x"])), np.float32)} for each in feeds]
    _mark_dynamic_outputs(model, references, feeds, {"x": {0: "batch"}})
    assert graph_tensors(model)[1][0].shape == (4, "batch")
