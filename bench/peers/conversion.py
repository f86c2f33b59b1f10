"""Make a peer's file in a process of its own: it may print, leave files, hang or crash.

The child reads a pickled (conversion, Job) that its parent wrote, runs in an empty folder, and
writes one line of text where it fails.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aigc_compress.errors import AigcCompressError, PassError, first_line
from aigc_compress.quantizing import QuantizeOptions
from aigc_compress.task import Feeds

__all__ = ["Job", "convert_apart", "one_line"]

LONGEST_SECONDS = 1800.0
LONGEST_MESSAGE = 300
QUIET = {"NNCF_CI": "1"}  # NNCF reports its use over the network without it


@dataclass(frozen=True)
class Job:
    """What a conversion is given.

    Attributes:
        source: the model that the user named, a `.pt` or `.onnx` file.
        graph: its FP32 form as an ONNX file.
        output: the ONNX file to write.
        calibration: the feeds that ranges are read from, the same for all peers.
        options: what our own `quantize` is told.
    """

    source: Path
    graph: Path
    output: Path
    calibration: Sequence[Feeds]
    options: QuantizeOptions


def convert_apart(conversion: str, job: Job, *, seconds: float = LONGEST_SECONDS) -> None:
    """Run `module:function` on a job in a fresh process.

    Raises:
        PassError: it failed, died, took too long or wrote nothing; in one line.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, complaint = Path(folder) / "job.pickle", Path(folder) / "complaint.txt"
        request.write_bytes(pickle.dumps((conversion, job)))
        (Path(folder) / "work").mkdir()
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__, str(request), str(complaint)],
                cwd=Path(folder) / "work",
                env={**os.environ, **QUIET},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise PassError(f"The conversion took longer than {seconds:.0f} s.") from None
        if complaint.exists():
            raise PassError(complaint.read_text())
        if done.returncode:
            raise PassError(f"The conversion's process died (exit code {done.returncode}).")
    if not job.output.is_file():
        raise PassError("The conversion ended without a word and wrote no file.")


def one_line(error: BaseException) -> str:
    """Return an error as one line: our own messages as they are, others with their kind."""
    kind, told = type(error).__name__, first_line(error)
    if not isinstance(error, AigcCompressError):
        told = f"{kind}: {told}" if told != kind else f"{kind} {_place(error)}"
    return told[:LONGEST_MESSAGE]


def _place(error: BaseException) -> str:
    """Return where an error without a message was raised."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"in {last.name} ({Path(last.filename).name}, line {last.lineno})"


def _sort_nodes(path: Path) -> None:
    """Sort the nodes of a file where they are not, in place.

    ONNX Runtime's tools leave some graphs unsorted. It loads them all the same, but our reader
    wants what the ONNX standard wants, and that must not count against a peer.
    """
    import onnx
    import onnx_ir as ir
    from google.protobuf.message import DecodeError

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, DecodeError, OSError) as error:
        if "topologically sorted" in str(error):
            model = ir.from_proto(onnx.load(path))
            model.graph.sort()
            onnx.save(ir.to_proto(model), path)


def _main(request: Path, complaint: Path) -> None:
    try:
        conversion, job = pickle.loads(request.read_bytes())
        module, _, function = conversion.partition(":")
        getattr(importlib.import_module(module), function)(job)
        _sort_nodes(job.output)
    except Exception as error:  # other people's libraries raise whatever they run into
        complaint.write_text(one_line(error))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
