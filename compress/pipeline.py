"""Run passes one after the other and check both doors of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ValidationError

from .artifact import Artifact, TensorSpec, graph_tensors
from .engines.ort import OrtSession
from .errors import PassError, UsageError, unknown_name
from .passes import PASSES, Context
from .recipe import Recipe

__all__ = ["check_steps", "run_passes", "run_recipe"]


def run_recipe(artifact: Artifact, recipe: Recipe, context: Context) -> Artifact:
    """Run a recipe's passes; raises UsageError for unknown passes or settings, before any work."""
    return run_passes(artifact, check_steps(recipe), context)


def check_steps(
    recipe: Recipe, more: Mapping[str, type[BaseModel]] | None = None
) -> list[tuple[str, BaseModel]]:
    """Return the steps of a recipe with their settings checked.

    Args:
        recipe: as it was read.
        more: settings of steps that are no passes, by name.

    Raises:
        UsageError: unknown passes or settings, all of them, each with its line where it is known.
    """
    configs = {name: each.config for name, each in PASSES.items()} | dict(more or {})
    steps: list[tuple[str, BaseModel]] = []
    faults = []
    for index, each in enumerate(recipe.passes):
        place = ("passes", index)
        if each.pass_ not in configs:
            told = str(unknown_name("pass", each.pass_, configs))
            faults.append(recipe.fault((*place, "pass"), told))
            continue
        try:
            steps.append((each.pass_, configs[each.pass_].model_validate(each.config)))
        except ValidationError as error:
            faults += [
                recipe.fault((*place, "config", *e["loc"]), e["msg"]) for e in error.errors()
            ]
    if faults:
        raise UsageError(f"The recipe {recipe.name} has faults:\n  " + "\n  ".join(faults))
    return steps


def run_passes(
    artifact: Artifact, steps: Sequence[tuple[str, BaseModel]], context: Context
) -> Artifact:
    """Run the named passes in order.

    Raises:
        PassError: a pass failed, or its result lost an input, an output or a dynamic axis, or
            gives numbers that are not finite on the check feeds.
    """
    for name, config in steps:
        before = artifact
        artifact = PASSES[name].run(before, config, context)
        if before.stage == artifact.stage == "onnx":
            _check_face(name, before, artifact)
            _check_numbers(name, before, artifact, context)
    return artifact


def _check_face(name: str, before: Artifact, after: Artifact) -> None:
    for kind, old, new in zip(
        ("inputs", "outputs"),
        graph_tensors(before.payload),
        graph_tensors(after.payload),
        strict=True,
    ):
        are_inputs = kind == "inputs"
        same = len(old) == len(new) and all(
            _is_same_face(*pair, is_input=are_inputs) for pair in zip(old, new, strict=True)
        )
        if not same:
            raise PassError(f"The pass {name} changed the {kind}: {old} became {new}.")


def _is_same_face(old: TensorSpec, new: TensorSpec, *, is_input: bool) -> bool:
    """Compare names, dtypes and sizes; an output's size may become known, an input's may not."""
    if (old.name, old.dtype, len(old.shape)) != (new.name, new.dtype, len(new.shape)):
        return False
    return all(
        before == after or (isinstance(before, str) and (isinstance(after, str) or not is_input))
        for before, after in zip(old.shape, new.shape, strict=True)
    )


def _check_numbers(name: str, before: Artifact, after: Artifact, context: Context) -> None:
    sessions = [OrtSession(each, threads=1) for each in (before, after)]
    for feeds in context.check_feeds:
        wanted, found = (session.run(feeds) for session in sessions)
        for key, value in found.items():
            if value.shape != wanted[key].shape:
                raise PassError(f"The pass {name} changed the shape of {key}.")
            is_new_fault = np.isfinite(wanted[key]).all() and not np.isfinite(value).all()
            if value.dtype.kind == "f" and is_new_fault:
                raise PassError(f"The pass {name} made {key} infinite or not a number.")
