"""What `--help` says, after the terminal's markup has been taken out."""

import re

import pytest
from typer.main import get_command

from aigc_compress.cli.app import app

MARKUP = re.compile(r"\[[a-z#/@][^\[]*?\]")  # what rich takes for a tag, and shows nothing of


def commands(command, path=("aigc-compress",)):
    yield " ".join(path), command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


@pytest.mark.parametrize(("name", "command"), list(commands(get_command(app))))
def test_no_word_of_a_help_text_is_taken_for_markup(name, command):
    texts = [command.help or "", *(getattr(each, "help", None) or "" for each in command.params)]

    assert not [text for text in texts if MARKUP.search(text)]
