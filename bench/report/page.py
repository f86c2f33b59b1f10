"""Fill the template: documents in, one HTML page out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aigc_compress.errors import NotOnThisMachineError

from .document import Document
from .wording import number_text, size_text

__all__ = ["render_report"]

TEMPLATE = "template.html.j2"


def render_report(documents: Sequence[Document]) -> str:
    """Return a page that shows the documents; it loads nothing and runs no script.

    Raises:
        NotOnThisMachineError: Jinja2 or Matplotlib is not installed.
    """
    try:
        import jinja2

        from .context import make_context
    except ModuleNotFoundError as error:
        raise NotOnThisMachineError(
            f"{_package(error)} is not installed: pip install 'aigc-compress[compress]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number_text, "size": size_text}
    return environment.get_template(TEMPLATE).render(make_context(documents))


def _package(error: ModuleNotFoundError) -> str:
    return (error.name or "a package").split(".")[0]
