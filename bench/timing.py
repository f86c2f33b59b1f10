"""What was timed, as raw as it was taken: everything printed is derived from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Block", "ProcessRecord", "Timing"]


@dataclass(frozen=True)
class Block:
    """One block of calls.

    Attributes:
        calls_ns: nanoseconds of each call.
        wall_ns: nanoseconds from the start of the first call to the end of the last one, gaps left
            out.
    """

    calls_ns: tuple[int, ...]
    wall_ns: int

    def ms_per_call(self, *, is_throughput: bool) -> float:
        """Return the median call in milliseconds; for throughput, wall time over calls."""
        if is_throughput:
            return self.wall_ns / len(self.calls_ns) / 1e6
        return float(np.median(self.calls_ns)) / 1e6


@dataclass
class ProcessRecord:
    """What one fresh process did.

    Attributes:
        load_ms: session creation.
        first_ms: first call.
        warmup_calls: calls before the first block.
        is_steady: whether the warm-up ended because times had settled.
        peak_bytes: peak resident memory.
        cores: the CPU cores that the process was allowed to use; empty where not known.
        remarks: what the engine has to say of how it runs the model.
        blocks: the timed blocks.
    """

    load_ms: float
    first_ms: float
    warmup_calls: int
    is_steady: bool = True
    peak_bytes: int = 0
    cores: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Timing:
    """All processes of one contestant."""

    processes: tuple[ProcessRecord, ...]
    is_throughput: bool = False

    @cached_property
    def blocks_ms(self) -> NDArray[np.float64]:
        """Return milliseconds per call of each block, float64 (processes, blocks)."""
        shortest = min(len(each.blocks) for each in self.processes)
        return np.array(
            [
                [b.ms_per_call(is_throughput=self.is_throughput) for b in each.blocks[:shortest]]
                for each in self.processes
            ]
        )

    @cached_property
    def calls_ms(self) -> NDArray[np.float64]:
        """Return milliseconds of every timed call, float64 (calls,)."""
        return np.concatenate([b.calls_ns for each in self.processes for b in each.blocks]) / 1e6

    @property
    def median_ms(self) -> float:
        """Return the median over all blocks, in milliseconds per call."""
        return float(np.median(self.blocks_ms))

    @property
    def load_ms(self) -> float:
        """Return session creation, median over processes."""
        return self._median("load_ms")

    @property
    def first_ms(self) -> float:
        """Return the first call, median over processes."""
        return self._median("first_ms")

    @property
    def warmup_calls(self) -> int:
        """Return calls before the first block, median over processes."""
        return int(self._median("warmup_calls"))

    @property
    def unsteady_processes(self) -> int:
        """Return how many processes were timed though their warm-up never settled."""
        return sum(not each.is_steady for each in self.processes)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what the engine had to say, once."""
        return tuple(dict.fromkeys(told for each in self.processes for told in each.remarks))

    @property
    def peak_bytes(self) -> int:
        """Return peak resident memory of a process, median over processes."""
        return int(self._median("peak_bytes"))

    def calls_ns(self) -> list[list[list[int]]]:
        """Return nanoseconds of every call, by process and block."""
        return [[list(b.calls_ns) for b in each.blocks] for each in self.processes]

    def about_processes(self) -> list[dict[str, Any]]:
        """Return what else was noted of every process, as JSON."""
        return [_about(each) for each in self.processes]

    @classmethod
    def from_raw(
        cls,
        calls_ns: Sequence[Sequence[Sequence[int]]],
        processes: Sequence[Mapping[str, Any]],
        *,
        is_throughput: bool = False,
    ) -> Timing:
        """Read back what `calls_ns` and `about_processes` returned.

        Raises:
            ValueError, TypeError or KeyError: they did not return this.
        """
        pairs = zip(calls_ns, processes, strict=True)
        return cls(tuple(_process(calls, about) for calls, about in pairs), is_throughput)

    def _median(self, name: str) -> float:
        return float(np.median([getattr(each, name) for each in self.processes]))


def _about(process: ProcessRecord) -> dict[str, Any]:
    walls = [block.wall_ns for block in process.blocks]
    told = asdict(replace(process, blocks=[]))
    del told["blocks"]
    lists = {"cores": list(process.cores), "remarks": list(process.remarks)}
    return {**told, **lists, "walls_ns": walls}


def _process(calls_ns: Sequence[Sequence[int]], about: Mapping[str, Any]) -> ProcessRecord:
    pairs = zip(calls_ns, about["walls_ns"], strict=True)
    blocks = [Block(tuple(calls), wall) for calls, wall in pairs]
    told = {name: value for name, value in about.items() if name != "walls_ns"}
    tuples = {"cores": tuple(about["cores"]), "remarks": tuple(about.get("remarks", ()))}
    return ProcessRecord(**{**told, **tuples, "blocks": blocks})
