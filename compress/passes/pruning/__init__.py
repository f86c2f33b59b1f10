"""Structured pruning: which units a module has, how much they matter, and how to take them out."""

from .importance import Loss, importances
from .plan import Cost, Plan, choose
from .sizes import changed_sizes, fit_sizes
from .timed import choose_by_time
from .tracing import Family
from .trials import Prunable, find_units
from .widths import WidthTable, fast_widths, measure_widths

__all__ = [
    "Cost",
    "Family",
    "Loss",
    "Plan",
    "Prunable",
    "WidthTable",
    "changed_sizes",
    "choose",
    "choose_by_time",
    "fast_widths",
    "find_units",
    "fit_sizes",
    "importances",
    "measure_widths",
]
