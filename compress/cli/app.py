"""The Typer application, its exit codes, and the one place where errors become messages."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Annotated

import typer

from aigc_compress import __version__
from aigc_compress.console import say
from aigc_compress.errors import AigcCompressError, NotOnThisMachineError, StoppedError

from .analyze import analyze
from .bench import bench
from .bundle import bundle
from .compress import compress
from .doctor import doctor
from .export import export
from .fetch import fetch
from .info import info
from .pack import pack
from .prune import prune
from .quantize import quantize
from .recipes import recipes
from .report import report
from .run import run
from .sample import sample
from .train import train
from .verify import verify

__all__ = ["app", "main"]

HELP = """Make small generative and perception models smaller and faster, with evidence.

Exit codes: 0 good, 1 the work failed, 2 used wrongly, 3 not on this machine, 130 interrupted.
"""

app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)
for _verb in (
    fetch,
    info,
    export,
    prune,
    quantize,
    run,
    compress,
    pack,
    analyze,
    bench,
    bundle,
    verify,
    report,
    sample,
    train,
    doctor,
):
    app.command()(_verb)

app.add_typer(recipes, name="recipes")


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR)
    if debug:
        os.environ["AIGC_COMPRESS_DEBUG"] = "1"


def main() -> None:
    """Run the command line and leave with the documented exit code."""
    try:
        app()
    except SystemExit as error:
        if error.code == StoppedError.exit_code:  # Typer turned Ctrl-C into this
            say("Interrupted; no file was left half-written.")
        raise
    except AigcCompressError as error:
        _leave(error, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        hint = f"{error.name} is not installed: pip install 'aigc-compress[compress]'"
        _leave(error, hint, NotOnThisMachineError.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone
        sys.exit(1)
    except OSError as error:
        _leave(error, f"The system refused: {error}.", 1)


def _leave(error: BaseException, message: str, code: int) -> None:
    if os.environ.get("AIGC_COMPRESS_DEBUG"):
        traceback.print_exception(error)
    say(f"Error: {message}" if code != 130 else message)
    sys.exit(code)
