import itertools

import numpy as np
import onnx
import pytest

from aigc_compress.bench import latency, worker
from aigc_compress.bench.latency import Contestant, LatencyPlan, measure_latency
from aigc_compress.errors import AigcCompressError

SMALL = LatencyPlan(processes=2, blocks=3, block_ms=1.0, warmup_ms=1.0)


@pytest.fixture
def model(tmp_path):
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    text = header + " g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"
    path = tmp_path / "relu.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_timed_calls_are_the_differences_of_the_clock(monkeypatch):
    ticks = itertools.accumulate([0, 7, 100, 11, 100, 13])
    monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: next(ticks))
    assert worker.time_calls(lambda: None, 3) == [7, 11, 13]


def test_gaps_between_calls_are_not_timed(monkeypatch):
    now = [0]
    monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: now[0])
    monkeypatch.setattr(worker.time, "sleep", lambda s: now.__setitem__(0, now[0] + int(s * 1e9)))

    def call():
        now[0] += 5

    assert worker.time_calls(call, 3, gap_ms=20.0) == [5, 5, 5]
    assert now[0] == 3 * (20_000_000 + 5)


def test_every_contestant_gets_all_blocks_of_all_processes(model):
    feeds = {"x": np.zeros((1, 4), np.float32)}
    seen = []
    timings = measure_latency(
        [Contestant(model), Contestant(model)],
        feeds,
        SMALL,
        on_step=lambda done, total: seen.append((done, total)),
    )
    assert [timing.blocks_ms.shape for timing in timings] == [(2, 3), (2, 3)]
    assert all((timing.blocks_ms > 0).all() for timing in timings)
    assert seen == [(done, 6) for done in range(1, 7)]


def test_a_model_that_does_not_load_is_named_by_its_worker(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(AigcCompressError, match="not a valid ONNX model"):
        measure_latency([Contestant(broken)], {}, SMALL)


class FakeWorker:
    """Counts calls; a call takes 2 ms by its own clock."""

    _gap_ms = 0.0

    def __init__(self):
        self.calls = self.warmup_calls = 0

    def _ask(self, request):
        self.calls += request["calls"]
        return {"ns": [2_000_000] * request["calls"], "peak_bytes": 1}


def test_warm_up_ends_after_its_time_and_sizes_blocks_by_the_median():
    fake = FakeWorker()
    run = latency._Worker.run
    fake.run = lambda calls: run(fake, calls)
    size = latency._Worker.warm_up(fake, warmup_ms=20.0, block_ms=30.0)
    assert size == 15
    assert fake.calls * 2 >= 20
    assert fake.warmup_calls == fake.calls


def test_blocks_are_interleaved_in_random_order_but_complete(monkeypatch):
    order = []

    class Recorder:
        load_ms = first_ms = 1.0
        warmup_calls = peak_bytes = 7

        def __init__(self, name):
            self.name = name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def warm_up(self, *_):
            return 3

        def run(self, calls):
            order.append(self.name)
            return [1_000_000] * calls

    monkeypatch.setattr(latency, "_worker", lambda c, *_: Recorder(c.path.name))
    from pathlib import Path

    plan = LatencyPlan(processes=1, blocks=50)
    timings = measure_latency([Contestant(Path("a")), Contestant(Path("b"))], {}, plan)
    rounds = [tuple(order[i : i + 2]) for i in range(0, 100, 2)]
    assert {tuple(sorted(each)) for each in rounds} == {("a", "b")}
    assert set(rounds) == {("a", "b"), ("b", "a")}
    assert [len(timing.calls_ms) for timing in timings] == [150, 150]
    assert {timing.peak_bytes for timing in timings} == {7}
