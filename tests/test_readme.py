"""The README's ten lines from a model to an app, run as they stand there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aigc_compress.models.data import CLASSES

README = Path(__file__).parents[1] / "README.md"


def blocks(title, language):
    """Return the code of a language under a heading."""
    text = README.read_text()
    section = text[text.index(f"### {title}\n") :].split("\n### ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


@pytest.mark.slow
def test_the_lines_from_a_model_to_an_app_do_what_they_say(run_cli, workplace):
    (commands,), (code,) = blocks("In an app", "sh"), blocks("In an app", "python")
    lines = [each for each in commands.splitlines() + code.splitlines() if each.strip()]
    assert len(lines) <= 10
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "aigc-compress"
        ended = run_cli(*words[1:])
        assert ended.code == 0, ended.stderr
    assert "verified" in ended.stdout
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cnn" in done.stdout
    assert any(label in done.stdout for label in CLASSES)
