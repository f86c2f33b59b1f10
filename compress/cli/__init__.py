"""The command line: one file per verb; each parses, calls the library and shows."""

from .app import main

__all__ = ["main"]
