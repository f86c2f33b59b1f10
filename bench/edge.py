"""`python -m aigc_compress.bench.edge BUNDLE...`: what the runtime costs over a bare session.

Four numbers for each bundle: the time that a call takes more than one of ONNX Runtime's own
session, the time to load and prove the bundle beside that to create a session, resident memory
over many calls from several threads, and how many of thousands of mutated copies are refused.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import psutil
import typer

from aigc_compress.cli import options as common
from aigc_compress.console import say, show_json, show_table
from aigc_compress.errors import AigcCompressError
from aigc_compress.machine import cpu_name
from aigc_compress.runtime import Bundle, load
from aigc_compress.runtime.bundle import golden_sets, open_bundle
from aigc_compress.runtime.verifying import verify

__all__ = ["EdgeNumbers", "main", "measure"]

SCHEMA = "aigc-compress/edge/1"
BLOCKS, BLOCK_SECONDS = 40, 0.02
LOADS = 30
CALLS, FIRST_CALLS, THREADS = 100_000, 1_000, 4
MUTATIONS = 2_000

app = typer.Typer(pretty_exceptions_enable=False)


@dataclass(frozen=True)
class EdgeNumbers:
    """What was measured of one bundle.

    Attributes:
        bundle: its file's name.
        size_bytes: of the file.
        bare_us: a call of ONNX Runtime's own session, in microseconds.
        overhead_us: what a call through the runtime takes more, the median of paired blocks.
        load_ratio: loading and proving the bundle over creating a session of the same graph.
        load_ms: the former.
        grown_bytes: resident memory after all calls over that after the first thousand.
        calls: how many, from four threads.
        mutated: copies with a byte changed, cut, put in or moved.
        accepted: those that were verified all the same.
    """

    bundle: str
    size_bytes: int
    bare_us: float
    overhead_us: float
    load_ratio: float
    load_ms: float
    grown_bytes: int
    calls: int
    mutated: int
    accepted: int

    @property
    def misses(self) -> list[str]:
        """Return the promises that were not kept."""
        allowed_us = max(0.05 * self.bare_us, 20.0)
        told = []
        if self.overhead_us > allowed_us:
            told.append(f"overhead {self.overhead_us:.1f} us, allowed {allowed_us:.1f}")
        if self.load_ratio > 1.5:
            told.append(f"load {self.load_ratio:.2f}x of a session's, allowed 1.5x")
        if self.grown_bytes >= 1e6:
            told.append(f"memory grew by {self.grown_bytes / 1e6:.1f} MB, allowed 1 MB")
        if self.accepted:
            told.append(f"{self.accepted} mutated bundles were verified")
        return told


def measure(path: Path, *, calls: int = CALLS, mutations: int = MUTATIONS) -> EdgeNumbers:
    """Measure one bundle; raises what loading it raises."""
    bundle: Bundle = load(path)
    bare_us, overhead_us = _overhead(path, bundle)
    load_ms, load_ratio = _loads(path, bundle)
    grown = _growth(path, bundle, calls)
    accepted = _accepted(path, mutations)
    size = path.stat().st_size
    told = (bare_us, overhead_us, load_ratio, load_ms, grown, calls, mutations, accepted)
    return EdgeNumbers(path.name, size, *told)


def _bare(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _feeds(path: Path, bundle: Bundle) -> dict[str, Any]:
    return next(golden_sets(*open_bundle(path), bundle.variant))[0]


def _overhead(path: Path, bundle: Bundle) -> tuple[float, float]:
    """Return microseconds of a bare call, and the median of what paired blocks take more."""
    archive, _ = open_bundle(path)
    session, feeds = _bare(archive.read(bundle.variant.model)), _feeds(path, bundle)
    runs: list[Callable[[], Any]] = [lambda: session.run(None, feeds), lambda: bundle.run(feeds)]
    for run in runs:
        _block(run, 100)
    count = max(20, int(BLOCK_SECONDS / (_block(runs[0], 100) / 1e6)))
    bare, more = [], []
    for at in range(BLOCKS):
        order = runs if at % 2 else runs[::-1]
        taken = {id(run): _block(run, count) for run in order}
        bare.append(taken[id(runs[0])])
        more.append(taken[id(runs[1])] - taken[id(runs[0])])
    return statistics.median(bare), statistics.median(more)


def _block(run: Callable[[], Any], count: int) -> float:
    """Return microseconds of a call, over a number of calls."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return 1e6 * (time.perf_counter() - start) / count


def _loads(path: Path, bundle: Bundle) -> tuple[float, float]:
    """Return milliseconds to load the bundle, and the ratio to a session of the same file."""
    graph = open_bundle(path)[0].read(bundle.variant.model)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        Path(file.name).write_bytes(graph)
        bare, whole = [], []
        for _ in range(LOADS):
            start = time.perf_counter()
            _bare(Path(file.name).read_bytes())
            middle = time.perf_counter()
            load(path)
            bare.append(middle - start)
            whole.append(time.perf_counter() - middle)
    ratios = [one / other for one, other in zip(whole, bare, strict=True)]
    return 1000 * statistics.median(whole), statistics.median(ratios)


def _growth(path: Path, bundle: Bundle, calls: int) -> int:
    """Return by how many bytes resident memory grows between the first and the last calls."""
    feeds, process = _feeds(path, bundle), psutil.Process()

    def called(count: int) -> None:
        barrier = threading.Barrier(THREADS)

        def some() -> None:
            barrier.wait()
            for _ in range(count // THREADS):
                bundle.run(feeds)

        threads = [threading.Thread(target=some) for _ in range(THREADS)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    called(FIRST_CALLS)
    before = process.memory_info().rss
    called(calls)
    return int(process.memory_info().rss - before)


def _accepted(path: Path, mutations: int) -> int:
    content, rng, accepted = path.read_bytes(), random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "mutated.aigc"
        for _ in range(mutations):
            copy.write_bytes(_mutated(content, rng))
            try:
                verify(copy)
                accepted += 1
            except AigcCompressError:
                pass
            if [*Path(folder).iterdir()] != [copy]:
                raise RuntimeError("A mutated bundle wrote a file.")
    return accepted


def _mutated(content: bytes, rng: random.Random) -> bytes:
    """Return another content: a bit flipped, bytes cut, put in, moved, or the end gone."""
    at, other = sorted(rng.sample(range(len(content)), 2))
    part = content[at : min(other, at + 64)]
    flipped = bytes([content[at] ^ 1 << rng.randrange(8)])
    changed = rng.choice(
        (
            content[:at] + flipped + content[at + 1 :],
            content[:at] + content[at + len(part) :],
            content[:at] + rng.randbytes(8) + content[at:],
            content[:at] + content[at + len(part) :] + part,
            content[:at],
        )
    )
    return content + b"\0" if changed == content else changed


@app.command()
def edge(
    bundles: Annotated[list[Path], typer.Argument(help=".aigc files")],
    calls: Annotated[int, typer.Option(min=4000, help="calls for the memory")] = CALLS,
    mutations: Annotated[int, typer.Option(min=1, help="mutated copies")] = MUTATIONS,
    json: common.Json = False,
) -> None:
    """Measure the runtime on bundles; exit code 1 where a promise is not kept.

    Example:
        python -m aigc_compress.bench.edge gan.aigc cnn.aigc rnn.aigc
    """
    found = [measure(each, calls=calls, mutations=mutations) for each in bundles]
    if json:
        rows = [{**asdict(each), "misses": each.misses} for each in found]
        show_json({"schema": SCHEMA, "cpu": cpu_name(), "bundles": rows})
    else:
        head = ["bundle", "MB", "bare us", "overhead us", "load ms", "load", "memory", "mutated"]
        show_table(cpu_name(), head, [_row(each) for each in found])
    misses = [f"{each.bundle}: {told}" for each in found for told in each.misses]
    for told in misses:
        say(f"Missed: {told}.")
    if misses:
        raise typer.Exit(1)


def _row(found: EdgeNumbers) -> list[str]:
    return [
        found.bundle,
        f"{found.size_bytes / 1e6:.2f}",
        f"{found.bare_us:.1f}",
        f"{found.overhead_us:+.1f}",
        f"{found.load_ms:.1f}",
        f"{found.load_ratio:.2f}x",
        f"{found.grown_bytes / 1e3:+.0f} kB in {found.calls} calls",
        f"{found.accepted} of {found.mutated} accepted",
    ]


def main() -> None:
    """Run the command line; our own errors are one line."""
    try:
        app()
    except AigcCompressError as error:
        say(f"Error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
