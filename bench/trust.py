"""Whether a measurement can be trusted: what else the machine did while it ran."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["CpuReading", "Trust", "Watch", "read_cpu", "read_surroundings"]

MOST_FOREIGN_CORES = 0.15
MOST_STEAL_PERCENT = 2.0
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class CpuReading:
    """Seconds since some start: wall clock, all cores' busy and stolen time, our own CPU time."""

    wall: float
    busy: float
    stolen: float
    own: float


@dataclass(frozen=True)
class Trust:
    """What happened during a measurement.

    Attributes:
        foreign_cores: mean number of cores that other processes kept busy.
        steal_percent: share of time that the hypervisor took away, in percent of all cores.
        complaint: why the numbers should not be trusted, or an empty text.
    """

    foreign_cores: float
    steal_percent: float
    complaint: str

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


class Watch:
    """Look at the machine before and after a measurement."""

    def __init__(self, read: Callable[[], CpuReading] | None = None) -> None:
        self._read = read or read_cpu
        self._before = self._read()

    def stop(self) -> Trust:
        """Return what happened since the watch was made."""
        import psutil

        after, before = self._read(), self._before
        wall = max(after.wall - before.wall, 1e-9)
        foreign = max(0.0, (after.busy - before.busy) - (after.own - before.own)) / wall
        cores = psutil.cpu_count() or 1
        steal = 100 * (after.stolen - before.stolen) / wall / cores
        return Trust(foreign, steal, _complaint(foreign, steal))


def read_cpu() -> CpuReading:
    """Read the clocks now; finished worker processes count as our own."""
    import psutil

    times = psutil.cpu_times()
    parts = ("user", "nice", "system", "irq", "softirq")
    busy = sum(float(getattr(times, part, 0.0)) for part in parts)
    mine = psutil.Process().cpu_times()
    own = mine.user + mine.system + mine.children_user + mine.children_system
    return CpuReading(time.monotonic(), busy, float(getattr(times, "steal", 0.0)), own)


def read_surroundings() -> dict[str, Any]:
    """Return load average, frequency governor and cgroup CPU quota, None where not readable."""
    import psutil

    return {
        "load_average": list(psutil.getloadavg()),
        "governor": _first_line(GOVERNOR),
        "cgroup_cpu_max": _first_line(CGROUP_QUOTA),
    }


def _complaint(foreign: float, steal: float) -> str:
    faults = []
    if foreign > MOST_FOREIGN_CORES:
        faults.append(f"other processes kept {foreign:.2f} cores busy")
    if steal > MOST_STEAL_PERCENT:
        faults.append(f"the hypervisor took {steal:.1f} % of the time away")
    return " and ".join(faults)


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
