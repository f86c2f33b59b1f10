import subprocess
import sys

import pytest

BLOCKED = ("torch", "onnx", "onnxscript", "scipy", "psutil", "cpuinfo", "yaml", "torchmetrics")
PROGRAM = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
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
