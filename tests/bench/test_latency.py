import contextlib
import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from aigc_compress.artifact import Artifact
from aigc_compress.bench import latency, worker
from aigc_compress.bench.client import Worker
from aigc_compress.bench.latency import Contestant, LatencyPlan, measure_latency, run_contest
from aigc_compress.bench.meter import QuickMeter
from aigc_compress.bench.timing import Block, Timing
from aigc_compress.errors import AigcCompressError, UsageError

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
    assert seen == [(1, 2), (2, 2)]


def test_a_timing_process_loads_its_engine_alone():
    """Its start is waited for dozens of times, and its memory is reported."""
    code = "import sys, aigc_compress.bench.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {*done.stdout.split()}
    assert "onnxruntime" in loaded
    assert not loaded & {"onnx", "openvino", "pydantic", "rich", "torch", "typer"}


def test_a_model_that_does_not_load_is_named_by_its_worker(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(AigcCompressError, match="failed:Protobuf"):
        measure_latency([Contestant(broken)], {}, SMALL)


class FakeChannel:
    """Answers like a worker; a call takes `call_ms` by a clock of its own, shared with others."""

    def __init__(self, clock, call_ms, noise=0.0, log=None):
        self.clock, self.call_ms, self.noise, self.log = clock, call_ms, noise, log
        self.rng = np.random.default_rng(int(call_ms * 1e6))
        self.calls = 0

    def ask(self, request):
        if request is None:
            return {"started": True}
        if "path" in request:
            self.name = request["path"]
            return {"load_ms": 5.0, "first_ms": 3.0, "cores": [0, 1], "remarks": ["a"]}
        self.calls += request["calls"]
        if self.log is not None:
            self.log.append(self.name)
        factor = 1 + self.noise * self.rng.standard_normal(request["calls"])
        spent = [int(self.call_ms * 1e6 * f) for f in factor]
        self.clock[0] += sum(spent) / 1e9
        return {"ns": spent, "wall_ns": sum(spent), "peak_bytes": 7}


@pytest.fixture
def contest(monkeypatch):
    """Run a contest of fake models, given by milliseconds per call, under a fake clock."""
    clock = [0.0]
    monkeypatch.setattr(latency.time, "monotonic", lambda: clock[0])

    def run(*calls_ms, plan, noise=0.0, log=None, decides=True):
        todo = itertools.cycle(calls_ms)

        @contextlib.contextmanager
        def start(engine):
            yield Worker(FakeChannel(clock, next(todo), noise, log))

        monkeypatch.setattr(latency, "start_worker", start)
        entries = [Contestant(Path(str(i)), decides=decides) for i in range(len(calls_ms))]
        return run_contest(entries, {}, plan)

    return run


def test_warm_up_ends_after_its_time_and_sizes_blocks_by_the_median(contest):
    found = contest(2.0, plan=LatencyPlan(processes=1, blocks=2, block_ms=30.0, warmup_ms=20.0))
    process = found.timings[0].processes[0]
    assert [len(block.calls_ns) for block in process.blocks] == [15, 15]
    assert process.warmup_calls * 2 >= 20
    assert process.is_steady
    assert (process.load_ms, process.first_ms, process.peak_bytes) == (5.0, 3.0, 7)


def test_a_model_that_never_settles_is_timed_and_told(contest):
    plan = LatencyPlan(processes=3, blocks=2, warmup_ms=20.0, block_ms=10.0)
    timing = contest(1.0, plan=plan, noise=0.9).timings[0]
    assert timing.unsteady_processes == sum(not each.is_steady for each in timing.processes)
    assert all(each.warmup_calls >= 20 for each in timing.processes)


def test_blocks_are_interleaved_in_random_order_but_complete(contest):
    order = []
    plan = LatencyPlan(processes=1, blocks=50, warmup_ms=0.0)
    timings = contest(10.0, 10.0, plan=plan, log=order).timings
    rounds = [tuple(order[-100:][i : i + 2]) for i in range(0, 100, 2)]
    assert {tuple(sorted(each)) for each in rounds} == {("0", "1")}
    assert set(rounds) == {("0", "1"), ("1", "0")}
    assert [len(timing.calls_ms) for timing in timings] == [150, 150]


def test_a_large_difference_ends_after_three_processes(contest):
    found = contest(2.0, 1.0, plan=LatencyPlan(processes=9), noise=0.02)
    assert (found.reason, len(found.timings[0].processes)) == ("verdict clear", 3)
    assert found.speedup(1).verdict == "faster"
    assert found.confidence == pytest.approx(1 - 0.01 / 6)


def test_no_difference_takes_all_processes(contest):
    found = contest(1.0, 1.0, plan=LatencyPlan(processes=5), noise=0.05)
    assert (found.reason, len(found.timings[0].processes)) == ("all processes", 5)
    assert found.confidence == pytest.approx(0.96)
    assert found.speedup(1).verdict == "no difference shown"


def test_a_control_alone_does_not_end_the_measurement(contest):
    found = contest(2.0, 1.0, plan=LatencyPlan(processes=4), decides=False)
    assert found.reason == "all processes"


def test_time_that_is_used_up_ends_it_but_never_before_three_processes(contest):
    plan = LatencyPlan(processes=50, max_seconds=1.0)
    found = contest(1.0, 1.0, plan=plan, noise=0.05)
    # A process takes 100 ms of warm-up and 8 blocks of 30 ms, twice: two thirds of a second.
    assert (found.reason, len(found.timings[0].processes)) == ("out of time", 3)
    assert found.timings[0].blocks_ms.shape[1] >= latency.LEAST_BLOCKS


def test_a_slow_model_gets_single_calls_and_two_blocks_where_time_is_short(contest):
    found = contest(5000.0, 5000.0, plan=LatencyPlan(max_seconds=10.0))
    assert found.timings[0].blocks_ms.shape == (3, 2)
    assert len(found.timings[0].calls_ms) == 6


def test_throughput_counts_wall_time_over_calls():
    block = Block((4_000_000, 4_000_000, 4_000_000, 4_000_000), 8_000_000)
    assert block.ms_per_call(is_throughput=True) == 2.0
    assert block.ms_per_call(is_throughput=False) == 4.0


def test_callers_share_the_calls_out_and_overlap():
    barrier = threading.Barrier(3, timeout=10)  # passes only if three calls run at once
    spent, wall = worker.time_together(barrier.wait, 5, callers=3)
    assert len(spent) == 6
    assert wall >= max(spent)


def test_gaps_and_several_callers_exclude_each_other():
    with pytest.raises(UsageError, match="no gaps"):
        LatencyPlan(callers=2, gap_ms=20.0)


def test_raw_times_read_back_are_the_same_timing(contest):
    timing = contest(1.0, plan=LatencyPlan(processes=2, blocks=3), noise=0.1).timings[0]
    raw = json.loads(json.dumps([timing.calls_ns(), timing.about_processes()]))
    assert Timing.from_raw(*raw) == timing


def test_the_quick_meter_finds_the_slower_of_two_graphs():
    header = '<ir_version: 8, opset_import: ["" : 17]> g (float[64, 64] x) => (float[64, 64] y) '
    light = onnx.parser.parse_model(header + "{ y = MatMul(x, x) }")
    heavy = onnx.parser.parse_model(
        header
        + "{ "
        + "".join(f"t{i} = MatMul({f't{i - 1}' if i else 'x'}, x) " for i in range(40))
        + "y = Identity(t39) }"
    )
    feeds = {"x": np.full((64, 64), 0.01, np.float32)}
    artifacts = [Artifact("onnx", each) for each in (heavy, light)]
    (found,) = QuickMeter(budget_seconds=1.0).compare(artifacts[0], artifacts[1:], feeds)
    assert found.verdict == "faster"
    assert found.ratio > 5  # forty times the work
