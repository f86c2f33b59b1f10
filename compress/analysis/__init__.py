"""Which layer costs how much quality and time in INT8, and which differ from CPU to CPU."""

from .page import render_analysis
from .result import Analysis, Held, LayerResult, SchemeResult, Whole
from .run import AnalyzeOptions, analyze
from .words import saturation_text, summarize

__all__ = [
    "Analysis",
    "AnalyzeOptions",
    "Held",
    "LayerResult",
    "SchemeResult",
    "Whole",
    "analyze",
    "render_analysis",
    "saturation_text",
    "summarize",
]
