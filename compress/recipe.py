"""A recipe: a YAML list of passes with their settings."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import InputFileError, UsageError, describe_faults, unknown_name

__all__ = ["PassSpec", "Recipe", "load_recipe", "recipe_names"]


class PassSpec(BaseModel):
    """One pass of a recipe; its settings are checked by the pass's own config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pass_: str = Field(alias="pass", description="name of the pass")
    config: dict[str, Any] = Field(default_factory=dict, description="settings of the pass")


class Recipe(BaseModel):
    """Passes to run in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="the file's name without its suffix")
    description: str = Field(description="one sentence")
    passes: tuple[PassSpec, ...] = Field(min_length=1, description="passes in order")


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    folder = Path(str(resources.files("aigc_compress.recipes")))
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Load a shipped recipe by name, or a recipe file by path.

    Raises:
        UsageError: no such recipe, or faults in it, all of them listed.
        InputFileError: the file is no YAML.
    """
    if name in recipe_names():
        path = Path(str(resources.files("aigc_compress.recipes"))) / f"{name}.yaml"
    elif Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        path = Path(name)
    else:
        raise unknown_name("recipe", name, recipe_names())
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UsageError(f"{path}: {describe_faults(error)}") from error
