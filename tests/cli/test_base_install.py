import subprocess
import sys

import pytest

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
