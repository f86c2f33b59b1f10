"""Run torch artifacts: eagerly, compiled, or recorded as CUDA graphs; on the CPU or a GPU."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import PassError, first_line
from aigc_compress.task import Feeds

from .base import Availability
from .cuda import exact_float32, on_gpu, time_launches

if TYPE_CHECKING:
    from torch import Tensor, nn

    from aigc_compress.artifact import Artifact

__all__ = ["TorchEngine", "TorchRunner", "flat_tensors"]

INSTALL = "pip install 'aigc-compress[compress]'"
COMPILERS = ("c++", "g++", "clang++", "cl")
TRIES = 3  # before a call is recorded, so that libraries have chosen their kernels

Module = Callable[..., Any]


def flat_tensors(outputs: Any) -> list[Tensor]:
    """Return the tensors in what a module returned: one, or any nesting of them."""
    import torch

    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    elif not isinstance(outputs, (list, tuple)):
        return []
    return [tensor for each in outputs for tensor in flat_tensors(each)]


class TorchRunner:
    """Feed numpy arrays to a module whose `input_names` and `output_names` tell its face.

    `call`, where it is given, computes what the module does in another way.
    """

    def __init__(self, module: nn.Module, call: Module | None = None) -> None:
        self.module = module
        self._call = module if call is None else call
        first = next(itertools.chain(module.parameters(), module.buffers()), None)
        self.device = "cpu" if first is None else first.device

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        import torch

        output_names: tuple[str, ...] = self.module.output_names  # type: ignore[assignment]
        with torch.inference_mode():
            outputs = self._call(*self._placed(feeds))
            listed = outputs if isinstance(outputs, tuple) else (outputs,)
            found = [value.cpu().numpy() for value in listed]
        return dict(zip(output_names, found, strict=True))

    def _placed(self, feeds: Feeds) -> list[Tensor]:
        import torch

        names: tuple[str, ...] = self.module.input_names  # type: ignore[assignment]
        return [torch.from_numpy(np.asarray(feeds[name])).to(self.device) for name in names]


class TorchSession(TorchRunner):
    """A runner whose failures are ours, as those of other engines; feeds are not checked here."""

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        try:
            return super().run(feeds)
        except Exception as error:  # a module's own code raises whatever it likes
            raise PassError(f"torch does not run this module: {first_line(error)}") from error


class CudaSession(TorchSession):
    """A session on a GPU, which has a clock of its own."""

    def device_timer(self, feeds: Feeds) -> Callable[[int], list[int]]:
        """See `HasDeviceClock`."""
        import torch

        inputs, stream = self._placed(feeds), torch.cuda.current_stream()

        def timed(count: int) -> list[int]:
            with torch.inference_mode():
                return time_launches(lambda: self._call(*inputs), count, stream)

        return timed


class RecordedSession(CudaSession):
    """A session whose calls are recorded as CUDA graphs, one per shape of inputs, and replayed.

    A graph has one set of inputs and outputs, so calls go one by one.
    """

    def __init__(self, module: nn.Module, call: Module) -> None:
        super().__init__(module, self._replay)
        self._function = call
        self._graphs: dict[tuple[Any, ...], tuple[Any, list[Tensor], Any]] = {}
        self._lock = threading.Lock()

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        with self._lock:
            return super().run(feeds)

    def device_timer(self, feeds: Feeds) -> Callable[[int], list[int]]:
        """See `HasDeviceClock`; the feeds are in the graph's own inputs already."""
        import torch

        self.run(feeds)
        graph, _, _ = self._graphs[_shapes(self._placed(feeds))]
        stream = torch.cuda.current_stream()
        return lambda count: time_launches(graph.replay, count, stream)

    def _replay(self, *inputs: Tensor) -> Any:
        shapes = _shapes(inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._record(inputs)
        graph, places, outputs = self._graphs[shapes]
        for place, value in zip(places, inputs, strict=True):
            place.copy_(value)
        graph.replay()
        return outputs

    def _record(self, inputs: Sequence[Tensor]) -> tuple[Any, list[Tensor], Any]:
        import torch

        places = [each.clone() for each in inputs]
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(TRIES):
                self._function(*places)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._function(*places)
        return graph, places, outputs


@dataclass(frozen=True)
class TorchEngine:
    """torch on a device.

    Attributes:
        name: what it is called.
        device: where it runs.
        compiles: whether `torch.compile` makes kernels of the module first.
        records: whether calls are recorded as CUDA graphs, one per shape of inputs, and replayed.
    """

    name: str = "torch"
    device: Literal["cpu", "cuda"] = "cpu"
    compiles: bool = False
    records: bool = False
    stage: str = "torch"
    int8_pass: str = ""

    @property
    def is_on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"

    def availability(self) -> Availability:
        """Tell whether torch is installed, and what else this way of running needs."""
        if importlib.util.find_spec("torch") is None:
            return Availability(False, "torch is not installed", INSTALL)
        if self.compiles and not _has_compiler():
            return Availability(False, "torch.compile needs a C++ compiler, and none is here")
        ways = [w for w, on in (("compiled", self.compiles), ("CUDA graphs", self.records)) if on]
        detail = f"torch, {' and '.join(ways) or 'eager'}"
        return Availability(True, f"{detail}, CPU") if self.device == "cpu" else on_gpu(detail)

    def load(self, artifact: Artifact, *, threads: int) -> TorchSession:
        """Wrap the module; `threads` holds for the whole process."""
        import torch

        torch.set_num_threads(threads)
        module = artifact.payload
        if self.device == "cuda":
            exact_float32()
            module = copy.deepcopy(module).to("cuda")  # the artifact stays where it is
        call: Module = torch.compile(module) if self.compiles else module
        if self.records:
            return RecordedSession(module, call)
        return (TorchSession if self.device == "cpu" else CudaSession)(module, call)


def _shapes(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple((each.shape, each.dtype) for each in inputs)


def _has_compiler() -> bool:
    return bool(os.environ.get("CXX")) or any(map(shutil.which, COMPILERS))
