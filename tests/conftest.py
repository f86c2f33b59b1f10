"""What several tests share: the command line in this process, and tiny models on disk."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch
from onnx import parser

from aigc_compress.checkpoint import Checkpoint, write_checkpoint
from aigc_compress.cli import app
from aigc_compress.machine import machine_scheme
from aigc_compress.meter import NodeTime
from aigc_compress.models import data
from aigc_compress.models.cnn import CnnConfig
from aigc_compress.models.gan import GanConfig
from aigc_compress.models.registry import KINDS
from aigc_compress.models.rnn import CharacterModel, RnnConfig

TINY = {
    "cnn": CnnConfig(widths=(4,), blocks=(1,)),
    "gan": GanConfig(latent=4, widths=(4, 4, 4)),
    "rnn": RnnConfig(alphabet="\n In the beginning", layers=1, hidden=4, embedding=4),
}
# Without VNNI, x86 adds two u8 x s8 products in int16: weights of 8 bits saturate there.
SATURATES = machine_scheme().weight_bits < 8
# Where tests run in the background of a shell, SIGINT is ignored, and processes inherit that.
CODE = """import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from aigc_compress.cli import main
main()"""
CLI = [sys.executable, "-c", CODE]


class RuleMeter:
    """Profiles by rule: floats take 1 ms, integers 0.25 ms, borders 1 ns per element."""

    def profile(self, artifact, feeds):
        told = {}
        for node in artifact.payload.graph.node:
            is_border = node.op_type in ("QuantizeLinear", "DequantizeLinear")
            is_integer = "Linear_Output" in " ".join(node.input) and not is_border
            ms = 1e-4 if is_border else 0.25 if is_integer else 1.0
            told[node.output[0]] = NodeTime(node.op_type, ms, 100)
        return told


class Ending(NamedTuple):
    """How a run of the command line ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep what searches find out away from the user's cache."""
    os.environ["AIGC_COMPRESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Make an empty folder the current one, as a user's would be."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_cli(workplace, monkeypatch, capsys):
    """Run the command line in this process."""
    monkeypatch.delenv("AIGC_COMPRESS_DEBUG", raising=False)

    def run(*args):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["aigc-compress", *map(str, args)])
        with pytest.raises(SystemExit) as ending:
            app.main()
        return Ending(ending.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def refuse(run_cli, workplace):
    """Run a command that must fail in one clear line and leave every file as it was."""

    def run(*args, code):
        before = files_in(workplace)
        ending = run_cli(*args)
        assert_refused(ending, code)
        assert files_in(workplace) == before
        return ending.stderr

    return run


def run_process(*args, **options):
    """Run the command line as a process of its own."""
    done = subprocess.run(
        [*CLI, *map(str, args)], capture_output=True, text=True, timeout=600, **options
    )
    return Ending(done.returncode, done.stdout, done.stderr)


def assert_refused(ending, code):
    assert ending.code == code, ending.stderr
    assert ending.stderr.startswith("Error: ")
    assert ending.stderr.count("\n") == 1, f"one line expected, not:\n{ending.stderr}"
    assert ending.stdout == ""


def files_in(folder):
    """Return every path below a folder with the digest of what it holds."""
    paths = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        for path in paths
    }


def tiny_checkpoint(kind, **changes):
    """Return an untrained checkpoint of a kind, with fields changed."""
    config = TINY[kind]
    state = KINDS[kind].module(config).state_dict()
    fields = {"model": kind, "config": config.model_dump(mode="json"), "state_dict": state}
    return Checkpoint(**{**fields, "task": kind, **changes})


def graph(text):
    """Return the checked model of a graph in ONNX's textual form, opset 17."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def gan_pt(workplace):
    path = workplace / "gan.pt"
    write_checkpoint(path, tiny_checkpoint("gan"))
    return path


@pytest.fixture
def cnn_pt(workplace):
    path = workplace / "cnn.pt"
    write_checkpoint(path, tiny_checkpoint("cnn"))
    return path


@pytest.fixture
def rnn_pt(workplace):
    path = workplace / "rnn.pt"
    write_checkpoint(path, tiny_checkpoint("rnn"))
    return path


@pytest.fixture
def text_pt(workplace):
    """Write an untrained RNN that knows every letter of the text."""
    alphabet = "".join(sorted(set(data.embedded_text())))
    config = RnnConfig(alphabet=alphabet, layers=2, hidden=12, embedding=8)
    torch.manual_seed(0)
    fields = {
        "config": config.model_dump(mode="json"),
        "state_dict": CharacterModel(config).state_dict(),
    }
    write_checkpoint(workplace / "rnn.pt", tiny_checkpoint("rnn", **fields))
    return workplace / "rnn.pt"


@pytest.fixture
def scores_onnx(workplace):
    """Write a graph with a float and a whole-number input: x (N, 3), n (N)."""
    path = workplace / "scores.onnx"
    text = """scores (float[N, 3] x, int64[N] n) => (float[N, 2] y, int64[N] m)
        <float[3, 2] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w)  m = Add(n, n) }"""
    onnx.save(graph(text), path)
    return path


@pytest.fixture
def full_disk(workplace):
    """Mount a small file system that is full but for an empty file's worth."""
    folder = workplace / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        refused = subprocess.run(command, capture_output=True, text=True).stderr
    except FileNotFoundError:
        refused = "there is no mount command"
    if refused:
        pytest.skip(f"a small file system cannot be mounted: {refused.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    """Write until the disk of a folder is full."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return
