"""What competes in the gate: the graph cleaned, lowered and quantized in several ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .artifact import Artifact
from .errors import AigcCompressError, StoppedError, first_line
from .gate import Candidate
from .passes import Context, Mode
from .passes.operators import RECURRENT, all_nodes
from .pipeline import run_recipe
from .recipe import PassSpec, Recipe
from .task import OnStep

__all__ = ["FOLDED", "Plan", "make_candidates", "plans_for"]

FOLDED = "FP32, folded"


@dataclass(frozen=True)
class Plan:
    """A way to make a candidate: its name, and passes with their settings."""

    name: str
    passes: tuple[tuple[str, Mapping[str, Any]], ...]

    def recipe(self) -> Recipe:
        """Return the passes as a recipe."""
        specs = [PassSpec(**{"pass": name}, config=dict(config)) for name, config in self.passes]
        return Recipe(name=self.name, description=self.name, passes=tuple(specs))


def plans_for(graph: Artifact, mode: Mode, *, has_vnni: bool) -> list[Plan]:
    """Return what is worth trying on a graph and a processor.

    Args:
        graph: the FP32 graph.
        mode: auto tries static and dynamic quantization and both together; the others alone.
        has_vnni: whether the processor multiplies 8-bit numbers without saturating in 16 bits.
    """
    plans = [Plan(FOLDED, (("fold", {}),))]
    ops = Counter(node.op_type for node in all_nodes(graph.payload.graph))
    for name, settings in _schemes(ops, mode, has_vnni=has_vnni):
        plans.append(Plan(f"INT8, {name}", (("fold", {}), ("quantize", settings))))
    return plans


def _schemes(
    ops: Counter[str], mode: Mode, *, has_vnni: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and settings of the quantize pass."""
    modes: list[Mode] = [mode]
    is_mixed = any(ops[op] for op in ("Conv", "Gemm")) and any(
        ops[op] for op in ("MatMul", *RECURRENT)
    )
    if mode == "auto" and is_mixed:
        modes = ["auto", "static", "dynamic"]
    for each in modes:
        yield each, {"mode": each, "reduce_range": not has_vnni}


def make_candidates(
    baseline: Artifact, plans: list[Plan], context: Context, *, on_step: OnStep | None = None
) -> list[Candidate]:
    """Return the candidates in the order of the plans; a plan that fails says why in its place."""
    candidates: list[Candidate] = []
    for index, plan in enumerate(plans):
        try:
            made = run_recipe(baseline, plan.recipe(), context)
            candidates.append(Candidate(plan.name, made))
        except StoppedError:
            raise
        except AigcCompressError as error:
            candidates.append(Candidate(plan.name, failure=first_line(error)))
        if on_step:
            on_step(index + 1, len(plans))
    return candidates
