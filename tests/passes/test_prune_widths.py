"""Widths that an engine is fast at: tables from a clock, and pruning that stops at them."""

import numpy as np
import pytest
import torch
from torch import nn

from aigc_compress.artifact import Artifact
from aigc_compress.bench.meter import QuickMeter
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import PassError
from aigc_compress.passes import Context, PruneConfig
from aigc_compress.passes.prune import PrunePass, find_prunable
from aigc_compress.passes.pruning import fast_widths, measure_widths


class Mixed(nn.Module):
    """A layer of every kind that has a table, and an embedding, which has none."""

    input_names, output_names = ("x", "t"), ("y",)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 40, 3, 2, 1)
        self.wide = nn.Conv2d(40, 72, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(72, 32, 3, 2, 1, output_padding=1)
        self.line = nn.Conv1d(32, 24, 5, padding="same", dilation=2)
        self.table = nn.Embedding(11, 20)
        self.lstm = nn.LSTM(20, 48, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(96, 40, batch_first=True)
        self.inner, self.head = nn.Linear(64, 56), nn.Linear(56, 7)

    def forward(self, x, t):
        x = self.up(self.wide(self.conv(x).relu()).relu()).relu()
        x = self.line(x.flatten(2)).relu().mean(-1)
        t = self.gru(self.lstm(self.table(t))[0])[0].mean(1)
        return self.head(self.inner(torch.cat([x, t], 1)).relu())


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.normal(size=(2, 3, 16, 16)).astype(np.float32),
        "t": rng.integers(0, 11, (2, 6)),
    }
    return Artifact("torch", Mixed().eval()), feeds


class BlockClock:
    """An engine that works in blocks of 16: time grows with the rows of the largest weight."""

    def __init__(self):
        self.asked = []

    def milliseconds(self, artifacts, feeds):
        times = []
        for artifact in artifacts:
            back = next(w for w in artifact.payload.graph.initializer if "back" in w.name)
            # Conv weights are (full width, width, ...), those of a product (width, full width).
            width = back.dims[1] if len(back.dims) > 2 else back.dims[0]
            self.asked.append(width)
            times.append(float(-(-width // 16)))
        return times


def test_a_table_of_every_kind_runs_and_has_the_layer_s_shapes(mixed):
    artifact, feeds = mixed
    prunable = find_prunable(artifact.payload, [feeds])
    seen = []

    def times_of(models, fed):
        seen.append(models)
        for model in (models[0], models[-1]):
            made = OrtSession(Artifact("onnx", model), threads=1).run(fed)
            assert np.isfinite(made["y"]).all()
        return [1.0] * len(models)

    inputs = [torch.from_numpy(each) for each in feeds.values()]
    steps = []
    tables = measure_widths(prunable, inputs, times_of, lambda *step: steps.append(step))
    told = {table.kind: (table.layer, max(table.milliseconds)) for table in tables}
    assert told == {
        "Conv 3x3 stride 2x2": ("wide", 72),
        "ConvTranspose 3x3 stride 2x2": ("up", 32),
        "Conv 5 dilation 2": ("line", 24),
        "LSTM": ("lstm", 48),
        "GRU": ("gru", 40),
        "Linear": ("inner", 56),
    }
    assert steps == [(n, 6) for n in range(6)]
    layers = dict(artifact.payload.named_modules())
    with torch.no_grad():
        x = layers["conv"](inputs[0])
        wanted = layers["wide"](x).shape
    kind = [t.kind for t in tables].index("Conv 3x3 stride 2x2")
    fed = {"x": x.numpy()}
    for model in seen[kind]:  # whatever its width, it ends at the full one
        assert OrtSession(Artifact("onnx", model), threads=1).run(fed)["y"].shape == wanted


def test_layers_stop_at_the_widths_that_save_time(mixed):
    artifact, feeds = mixed
    clock = BlockClock()
    config = PruneConfig(target_macs=0.4, multiple="measured", least=4)
    made = PrunePass().run(artifact, config, Context((feeds,), (feeds,), clock=clock))
    numbers = made.history[-1].numbers
    for name, (before, after) in numbers["widths"].items():
        if name == "table.weight":
            assert after % 8 == 0 or after == before
        else:
            assert after % 16 == 0 or after == before, name
    assert any(after < before for before, after in numbers["widths"].values())
    assert "table.weight" in numbers["unmeasured"]
    conv = next(t for t in numbers["width_tables"] if t["layer"] == "wide")
    assert conv["fast"] == [72, 64, 48, 32, 16]
    assert [width for width, _ in conv["ms"]] == [72, *range(68, 0, -4)]


def test_measured_widths_need_a_clock(mixed):
    artifact, feeds = mixed
    config = PruneConfig(ratio=0.5, multiple="measured")
    with pytest.raises(PassError, match="tells it"):
        PrunePass().run(artifact, config, Context((feeds,), (feeds,)))


def test_a_real_clock_tells_wide_from_narrow():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 4, 3)).eval()
    net.input_names, net.output_names = ("x",), ("y",)
    feeds = {"x": np.ones((1, 8, 24, 24), np.float32)}
    context = Context((feeds,), (feeds,), clock=QuickMeter(budget_seconds=1.0))
    config = PruneConfig(ratio=0.5, multiple="measured")
    made = PrunePass().run(Artifact("torch", net), config, context)
    (table,) = made.history[-1].numbers["width_tables"]
    times = dict(table["ms"])
    assert times[96] > 2 * times[8]
    assert set(made.history[-1].numbers["widths"]["0.weight"]) <= set(table["fast"])


@pytest.mark.parametrize(
    ("times", "fast"),
    [
        ({8: 1.0, 16: 2.0, 24: 3.0}, (24, 16, 8)),
        ({8: 1.0, 12: 1.5, 16: 1.49, 20: 2.1}, (20, 16, 8)),  # 12 takes as long as 16
        ({4: 1.0, 8: 0.99, 12: 1.0}, (12,)),  # what costs nothing stays
        ({4: 1.5, 8: 1.0, 12: 1.2}, (12, 8)),  # narrower and slower
    ],
)
def test_widths_that_save_no_time_are_not_stopped_at(times, fast):
    assert fast_widths(times) == fast
