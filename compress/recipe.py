"""A recipe: a YAML list of passes with their settings and a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from .errors import InputFileError, UsageError, unknown_name

__all__ = ["PassSpec", "Recipe", "load_recipe", "recipe_names", "recipe_path"]

Place = tuple[str | int, ...]


class PassSpec(BaseModel):
    """One pass of a recipe; its settings are checked by the pass's own config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pass_: str = Field(alias="pass", description="name of the pass")
    config: dict[str, Any] = Field(default_factory=dict, description="settings of the pass")


class Recipe(BaseModel):
    """Passes to run in order, and what they may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="the file's name without its suffix")
    description: str = Field(description="one sentence")
    model: str | None = Field(
        default=None, description="what it is run on where nothing is named: a reference or a file"
    )
    task: str | None = Field(
        default=None, description="the task of your own model, `package.module:attribute`"
    )
    max_drop: str | None = Field(
        default=None,
        description="allowed drop in the task's metric, like 0.5 or 1%; none: the metric's default",
    )
    passes: tuple[PassSpec, ...] = Field(min_length=1, description="passes in order")

    _lines: dict[Place, int] = PrivateAttr(default_factory=dict)

    def fault(self, place: Place, told: str) -> str:
        """Return a fault in words: its line where it is known, its key, what is wrong."""
        return _fault(self._lines, place, told)


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the file of a shipped recipe or of a path; raises UsageError where there is none."""
    if name in recipe_names():
        return _folder() / f"{name}.yaml"
    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        return Path(name)
    raise unknown_name("recipe", name, recipe_names())


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Load a shipped recipe by name, or a recipe file by path.

    Args:
        name: of a shipped recipe, or a `.yaml` file.
        overrides: settings by `pass.key` (every pass of that name) or `passes.INDEX.key`, and
            `max_drop`.

    Raises:
        UsageError: no such recipe, an override that meets nothing, or faults, all of them listed.
        InputFileError: the file is no YAML.
    """
    path = recipe_path(name)
    try:
        text = path.read_text()
        values, lines = yaml.safe_load(text), _lines_of(yaml.compose(text))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    for key, value in (overrides or {}).items():
        _override(values, key, value)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        faults = [_fault(lines, e["loc"], e["msg"]) for e in error.errors()]
        raise UsageError(f"{path} has faults:\n  " + "\n  ".join(faults)) from error
    recipe._lines.update(lines)
    return recipe


def _folder() -> Path:
    return Path(str(resources.files("aigc_compress.recipes")))


def _fault(lines: Mapping[Place, int], place: Place, told: str) -> str:
    known = next((place[:n] for n in range(len(place), 0, -1) if place[:n] in lines), None)
    line = f"line {lines[known]}, " if known else ""
    return f"{line}{'.'.join(map(str, place))}: {told}"


def _lines_of(node: yaml.Node | None, place: Place = ()) -> dict[Place, int]:
    """Return the line, from 1, of every key and entry of a YAML document."""
    found: dict[Place, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*place, str(key.value))
            found |= {here: key.start_mark.line + 1, **_lines_of(value, here)}
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*place, index)
            found |= {here: value.start_mark.line + 1, **_lines_of(value, here)}
    return found


def _override(values: Any, key: str, value: Any) -> None:
    """Set one setting in a recipe as it was read."""
    first, _, rest = key.partition(".")
    passes = values.get("passes") if isinstance(values, dict) else None
    if not rest and isinstance(values, dict) and first in Recipe.model_fields:
        values[first] = value
        return
    met = _passes_named(passes if isinstance(passes, list) else [], first, rest)
    if not rest or not met:
        names = ", ".join(str(each.get("pass")) for each in passes or [] if isinstance(each, dict))
        raise UsageError(f"--set {key}: the recipe has no pass {first!r}; it has {names}.")
    for config, path in met:
        *parents, last = path.split(".")
        for each in parents:
            config = config.setdefault(each, {})
        config[last] = value


def _passes_named(passes: Sequence[Any], first: str, rest: str) -> list[tuple[dict[str, Any], str]]:
    """Return the settings that an override means, and the path within them."""
    if first == "passes":
        index, _, rest = rest.partition(".")
        chosen = passes[int(index) : int(index) + 1] if index.isdigit() else []
    else:
        chosen = [each for each in passes if isinstance(each, dict) and each.get("pass") == first]
    found = []
    for each in chosen:
        if isinstance(each, dict) and rest:
            each["config"] = each.get("config") or {}
            found.append((each["config"], rest))
    return found
