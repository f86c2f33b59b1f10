"""`export --to triton`: a model repository for NVIDIA Triton Inference Server.

The layout and the fields of `config.pbtxt` are those of Triton's model_config.proto. Where every
input and output has a dynamic batch first, the server may join requests: up to the batch at which
more samples no longer raise the throughput, as it was measured here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aigc_compress.bench.meter import QuickMeter

from .api import to_onnx
from .artifact import Artifact, TensorSpec, graph_tensors, save_onnx
from .building import read_card
from .errors import OutputError, UsageError
from .loading import load_artifact
from .task import OnStep, quiet
from .workload import FeedOptions, Workload, make_workload

__all__ = ["Repository", "export_repository"]

BATCHES = (1, 2, 4, 8, 16, 32)
GOOD = 0.95  # of the best throughput: a larger batch only adds delay
TYPES: Mapping[str, str] = {
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"TYPE_FP{bits}" for bits in (16, 32, 64)},
    "bool": "TYPE_BOOL",
    "bfloat16": "TYPE_BF16",
}


@dataclass(frozen=True)
class Repository:
    """What was written.

    Attributes:
        folder: of the model, inside the repository.
        samples_per_second: throughput by batch, on this machine; empty where nothing is joined.
        largest_batch: that the server may make; 0: requests are served one by one.
    """

    folder: Path
    samples_per_second: Mapping[int, float]
    largest_batch: int


def export_repository(
    source: str | Path,
    repository: Path,
    *,
    name: str | None = None,
    feeds: FeedOptions | None = None,
    threads: int = 1,
    seed: int = 0,
    on_step: OnStep = quiet,
) -> Repository:
    """Add a model to a repository, as version 1.

    Args:
        source: a reference's name, a `.pt`, an `.onnx` file or an `.engine` with its card.
        repository: the folder that holds models; made if there is none.
        name: of the model; none: that of the file.
        feeds: for a model without a task, to measure batches on.
        threads: intra-op threads of the measurement and of the server.
        seed: of the feeds.
        on_step: called with (done, total) while batches are measured.

    Raises:
        UsageError: the source or the name is wrong.
        OutputError: a model of that name is there, or it cannot be written.
    """
    name = name or Path(source).name.removesuffix(".xz").rsplit(".", 1)[0]
    if not name or set(name) & set("/\\"):
        raise UsageError(f"{name!r} is no name of a model.")
    folder = repository / name
    if folder.exists():
        raise OutputError(f"{folder} is there already. Remove it, or give another --name.")
    if str(source).endswith(".engine"):
        engine = Path(source)
        config = _engine_config(name, read_card(engine))
        _write(folder, config, lambda version: shutil.copy(engine, version / "model.plan"))
        return Repository(folder, {}, 0)
    artifact = load_artifact(source)
    workload = make_workload(artifact, feeds or FeedOptions())
    graph = to_onnx(artifact, workload, seed=seed)
    inputs, outputs = graph_tensors(graph.payload)
    rates: dict[int, float] = {}
    if _is_batched((*inputs, *outputs)):
        rates = _rates(graph, workload, threads=threads, seed=seed, on_step=on_step)
    largest = _largest(rates)
    config = _config(name, "onnxruntime_onnx", inputs, outputs, largest)
    config |= {
        "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
        "parameters": [{"key": "intra_op_thread_count", "value": {"string_value": str(threads)}}],
    }
    _write(folder, config, lambda version: save_onnx(graph, version / "model.onnx"))
    return Repository(folder, rates, largest)


class Word(str):
    """A name of an enumeration, which stands without quotes."""


def _engine_config(name: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of an engine, whose sizes its profiles fix; nothing is joined."""
    inputs, outputs = (
        [TensorSpec(each["name"], each["dtype"], tuple(each["shape"])) for each in card[kind]]
        for kind in ("inputs", "outputs")
    )
    config = _config(name, "tensorrt_plan", inputs, outputs, 0)
    return config | {"instance_group": [{"kind": Word("KIND_GPU"), "count": 1}]}


def _config(
    name: str,
    platform: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    largest: int,
) -> dict[str, Any]:
    config = {
        "name": name,
        "platform": platform,
        "max_batch_size": largest,
        "input": [_tensor(each, is_batched=largest > 0) for each in inputs],
        "output": [_tensor(each, is_batched=largest > 0) for each in outputs],
    }
    if largest > 1:
        config["dynamic_batching"] = {"preferred_batch_size": [largest]}
    return config


def _tensor(spec: TensorSpec, *, is_batched: bool) -> dict[str, Any]:
    if spec.dtype not in TYPES:
        raise UsageError(f"Triton has no type for {spec.name}, which is {spec.dtype}.")
    sizes = spec.shape[1:] if is_batched else spec.shape
    dims = [size if isinstance(size, int) else -1 for size in sizes]
    if dims:
        return {"name": spec.name, "data_type": Word(TYPES[spec.dtype]), "dims": dims}
    # A list of sizes may not be empty: one sample is then a row of one.
    return {
        "name": spec.name,
        "data_type": Word(TYPES[spec.dtype]),
        "dims": [1],
        "reshape": {"shape": []},
    }


def _is_batched(tensors: Sequence[TensorSpec]) -> bool:
    """Whether the first axis of all tensors is one and the same dynamic batch."""
    firsts = {each.shape[0] if each.shape else 1 for each in tensors}
    return len(firsts) == 1 and isinstance(firsts.pop(), str)


def _rates(
    graph: Artifact, workload: Workload, *, threads: int, seed: int, on_step: OnStep
) -> dict[int, float]:
    """Return samples per second by batch; those that the feeds cannot make are left out."""
    meter = QuickMeter(threads=threads, seed=seed)
    rates: dict[int, float] = {}
    for done, batch in enumerate(BATCHES):
        on_step(done, len(BATCHES))
        try:
            feeds = workload.timing_feeds(batch=batch, length=1, seed=seed)
        except UsageError:  # feeds from a file have the batch that they have
            break
        rates[batch] = 1e3 * batch / meter.milliseconds([graph], feeds)[0]
    return rates


def _largest(rates: Mapping[int, float]) -> int:
    """Return the least batch whose throughput is as good as the best, or 0."""
    if not rates:
        return 0
    best = max(rates.values())
    return min(batch for batch, rate in rates.items() if rate >= GOOD * best)


def _write(folder: Path, config: Mapping[str, Any], fill: Any) -> None:
    """Let the whole folder appear at once."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
            made = Path(temporary) / folder.name
            (made / "1").mkdir(parents=True)
            fill(made / "1")
            (made / "config.pbtxt").write_text(_text(config))
            made.rename(folder)
    except OSError as error:
        raise OutputError(f"Cannot write {folder}: {error.strerror or error}.") from error


def _text(message: Mapping[str, Any], indent: str = "") -> str:
    """Return a message in protobuf's text format."""
    lines = []
    for key, value in message.items():
        rows = (
            value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        )
        for row in rows:
            if isinstance(row, dict):
                lines.append(f"{indent}{key} {{\n{_text(row, indent + '  ')}{indent}}}\n")
            elif isinstance(row, list):
                lines.append(f"{indent}{key}: [{', '.join(map(str, row))}]\n")
            else:
                told = row if isinstance(row, (Word, int)) else json.dumps(row)
                lines.append(f"{indent}{key}: {told}\n")
    return "".join(lines)
