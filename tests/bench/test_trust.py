import pytest

from aigc_compress.bench.trust import CpuReading, Watch, read_cpu, read_surroundings


def watch(before, after):
    readings = iter([CpuReading(*before), CpuReading(*after)])
    return Watch(lambda: next(readings)).stop()


def test_our_own_work_is_no_reason_to_distrust():
    trust = watch((0, 100, 0, 5), (10, 110, 0, 15))
    assert trust.foreign_cores == 0
    assert trust.complaint == ""


def test_work_of_others_is_named_in_cores():
    trust = watch((0, 100, 0, 5), (10, 120, 0, 15))
    assert trust.foreign_cores == pytest.approx(1.0)
    assert "1.00 cores busy" in trust.complaint


def test_stolen_time_is_named():
    import psutil

    stolen = 0.1 * 10 * psutil.cpu_count()
    trust = watch((0, 0, 0, 0), (10, 0, stolen, 0))
    assert trust.steal_percent == pytest.approx(10.0)
    assert "hypervisor" in trust.complaint


def test_the_clocks_of_this_machine_go_forward():
    first = read_cpu()
    sum(range(2_000_000))
    second = read_cpu()
    assert second.wall > first.wall
    assert second.own > first.own
    assert set(read_surroundings()) == {"load_average", "governor", "cgroup_cpu_max"}
