import subprocess
import sys

import pytest

from aigc_compress.bundling import make_bundle
from aigc_compress.models.data import CLASSES

BLOCKED = ("torch", "onnx", "onnxscript", "scipy", "psutil", "cpuinfo", "yaml", "torchmetrics")
# None in sys.modules makes an import fail as if the package were not installed.
PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({BLOCKED!r}))
from aigc_compress.cli import main
main()
"""


def run(*arguments):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_doctor_and_help_work_with_the_base_install_alone():
    assert run("--help").returncode == 0
    done = run("doctor")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout


@pytest.mark.parametrize(
    "arguments", [("quantize", "cnn"), ("bench", "cnn"), ("info", "cnn"), ("train", "cnn")]
)
def test_a_verb_that_needs_more_says_what_to_install(arguments):
    done = run(*arguments)
    assert done.returncode == 3, done.stderr
    assert "pip install 'aigc-compress[compress]'" in done.stderr
    assert "Traceback" not in done.stderr


APP = f"""
import sys
sys.modules.update(dict.fromkeys({(*BLOCKED, "pydantic", "rich", "typer", "PIL", "matplotlib")!r}))
import numpy as np
from aigc_compress.runtime import load
print(load("gan.aigc").generate(2, seed=1).shape)
print(load("cnn.aigc").classify(np.zeros((28, 28), np.uint8), best=1)[0].label)
print(repr("".join(load("rnn.aigc").write(n=20))))
"""


def test_bundles_of_the_references_run_and_are_verified_with_it(workplace):
    for name in ("gan", "cnn", "rnn"):
        made = make_bundle([f"{name}-edge"])
        (workplace / f"{name}.aigc").write_bytes(made.content)
        done = run("verify", f"{name}.aigc", "--time")
        assert done.returncode == 0, done.stderr
        assert f"verified: {name}-edge" in done.stdout
    done = subprocess.run([sys.executable, "-c", APP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shape, label, text = done.stdout.splitlines()
    assert shape == "(2, 28, 28)"
    assert label in CLASSES
    assert len(text) >= 22
