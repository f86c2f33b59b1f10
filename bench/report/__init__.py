"""One self-contained HTML page from the JSON documents of `bench` and the peers."""

from .document import Document, read_document
from .page import render_report
from .plain import report_document

__all__ = ["Document", "read_document", "render_report", "report_document"]
