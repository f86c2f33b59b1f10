"""Join requests that come at the same time into one call of the model."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import FeedError, UsageError

from .bundle import Arrays, Bundle
from .manifest import Port

__all__ = ["Batcher"]

MOST_WAITING = 4096


@dataclass(frozen=True)
class _Request:
    feeds: Mapping[str, NDArray[Any]]
    samples: int
    done: Future[Arrays] = field(default_factory=Future)


class Batcher:
    """Runs a bundle for many callers: what waits is joined, up to a number of samples.

    While the model runs, requests gather; so under load batches grow by themselves, and a single
    request is not held up. `within_ms` waits for others on top. Requests whose shapes differ in
    another axis than that of samples are run one after another; one that fails does not fail
    others.
    """

    def __init__(self, bundle: Bundle, *, most: int = 16, within_ms: float = 0.0) -> None:
        """Start the thread that runs the model.

        Args:
            bundle: a loaded one, whose inputs and outputs all have an axis of samples.
            most: samples of a call.
            within_ms: time that the first of a batch waits for others.

        Raises:
            UsageError: an input or output has no axis of samples.
        """
        ports = (*bundle.variant.inputs, *bundle.variant.outputs)
        fixed = [each.name for each in ports if each.batch_axis is None]
        if fixed:
            raise UsageError(f"{', '.join(fixed)} has no axis of samples: it cannot be joined.")
        self._bundle, self._most, self._within_ms = bundle, most, within_ms
        self._waiting: queue.Queue[_Request | None] = queue.Queue(MOST_WAITING)
        self._is_closed = False
        self._lock = threading.Lock()  # nothing is put behind the end
        self._calls = self._samples = 0
        self._thread = threading.Thread(target=self._serve, name="aigc-batcher", daemon=True)
        self._thread.start()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs for one request, when the batch that it went into is done.

        Raises:
            FeedError: the feeds do not fit, or the batcher was closed.
        """
        return self._put(feeds).result()

    async def arun(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Wait for the outputs without holding up the event loop."""
        return await asyncio.wrap_future(self._put(feeds))

    def stats(self) -> dict[str, Any]:
        """Return calls of the model, samples in all, and how many a call had on average."""
        mean = self._samples / self._calls if self._calls else None
        return {"calls": self._calls, "samples": self._samples, "samples_per_call": mean}

    def close(self) -> None:
        """Finish what waits, and stop."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._waiting.put(None)
        self._thread.join()

    def _put(self, feeds: Mapping[str, NDArray[Any]]) -> Future[Arrays]:
        arrays = {name: np.asarray(value) for name, value in feeds.items()}
        request = _Request(arrays, self._count(arrays))
        with self._lock:
            if self._is_closed:
                raise FeedError("The batcher was closed.")
            self._waiting.put(request)
        return request.done

    def _count(self, feeds: Mapping[str, NDArray[Any]]) -> int:
        """Return the samples of a request; raises FeedError where inputs do not agree."""
        inputs = self._bundle.variant.inputs
        if {*feeds} != {each.name for each in inputs}:
            wanted = ", ".join(each.name for each in inputs)
            raise FeedError(f"The inputs are {wanted}; given: {', '.join(feeds)}.")
        wrong = [p.name for p in inputs if feeds[p.name].ndim != len(p.shape)]
        if wrong:
            raise FeedError(f"{', '.join(wrong)}: another number of axes than the model's.")
        counts = {feeds[each.name].shape[_axis(each)] for each in inputs}
        if len(counts) != 1:
            raise FeedError(f"The inputs hold different numbers of samples: {sorted(counts)}.")
        return int(counts.pop())

    def _serve(self) -> None:
        is_open = True
        left: _Request | None = None
        while is_open or left is not None:
            first = left or self._waiting.get()
            if first is None:
                return
            batch, left, is_open = self._gathered(first)
            wanted = [each for each in batch if each.done.set_running_or_notify_cancel()]
            for group in _alike(wanted, self._bundle.variant.inputs):
                self._answer(group)

    def _gathered(self, first: _Request) -> tuple[list[_Request], _Request | None, bool]:
        """Return a batch, what no longer fitted, and whether more may come."""
        batch, samples = [first], first.samples
        deadline = time.monotonic() + self._within_ms / 1000
        while samples < self._most:
            try:
                wait = deadline - time.monotonic()
                another = self._waiting.get(timeout=wait) if wait > 0 else self._waiting.get(False)
            except queue.Empty:
                break
            if another is None:
                return batch, None, False
            if samples + another.samples > self._most:
                return batch, another, True
            batch.append(another)
            samples += another.samples
        return batch, None, True

    def _answer(self, group: Sequence[_Request]) -> None:
        try:
            parts = self._run_joined(group)
        except Exception as error:  # handed to whoever waits
            if len(group) > 1:
                for each in group:
                    self._answer([each])
            else:
                group[0].done.set_exception(error)
            return
        for each, outputs in zip(group, parts, strict=True):
            each.done.set_result(outputs)

    def _run_joined(self, group: Sequence[_Request]) -> list[Arrays]:
        self._calls += 1
        self._samples += sum(each.samples for each in group)
        if len(group) == 1:
            return [self._bundle.run(group[0].feeds)]
        variant = self._bundle.variant
        joined = {
            port.name: np.concatenate([each.feeds[port.name] for each in group], _axis(port))
            for port in variant.inputs
        }
        outputs = self._bundle.run(joined)
        cuts = np.cumsum([each.samples for each in group])[:-1]
        split = {
            port.name: np.split(outputs[port.name], cuts, _axis(port)) for port in variant.outputs
        }
        return [
            {name: parts[at].copy() for name, parts in split.items()} for at in range(len(group))
        ]


def _axis(port: Port) -> int:
    assert port.batch_axis is not None
    return port.batch_axis


def _alike(batch: Sequence[_Request], ports: Sequence[Port]) -> list[list[_Request]]:
    """Return requests in groups of one shape and dtype, but for the number of samples."""
    groups: dict[Any, list[_Request]] = {}
    for each in batch:
        key = []
        for port in ports:
            array, axis = each.feeds[port.name], _axis(port)
            key.append((array.dtype, array.shape[:axis], array.shape[axis + 1 :]))
        groups.setdefault(tuple(key), []).append(each)
    return [*groups.values()]
