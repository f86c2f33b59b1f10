"""`aigc-compress recipes`: the shipped recipes, and how one is written."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aigc_compress.console import show, show_json, show_table

from . import options as common

__all__ = ["recipes"]

recipes = typer.Typer(help="List, show and describe recipes.", no_args_is_help=True)


@recipes.command("list")
def _list(json: common.Json = False) -> None:
    """List the shipped recipes.

    Example: aigc-compress recipes list
    """
    from aigc_compress.recipe import load_recipe, recipe_names

    found = [load_recipe(name) for name in recipe_names()]
    if json:
        documents = [each.model_dump(mode="json", by_alias=True) for each in found]
        show_json({"schema": "aigc-compress/recipes/1", "recipes": documents})
        return
    rows = [
        [each.name, each.model or "any", " ".join(p.pass_ for p in each.passes), each.description]
        for each in found
    ]
    show_table("recipes", ["name", "model", "passes", "what it does"], rows)


@recipes.command("show")
def _show(name: Annotated[str, typer.Argument(help="name of a recipe")]) -> None:
    """Print a recipe's YAML: the start of one of your own.

    Example: aigc-compress recipes show cnn-edge > mine.yaml
    """
    from aigc_compress.recipe import recipe_path

    show(recipe_path(name).read_text().rstrip())


@recipes.command("schema")
def _schema() -> None:
    """Print the JSON Schema of recipes with the settings of every pass, for editors.

    Example: aigc-compress recipes schema > recipe.schema.json
    """
    from aigc_compress.passes import PASSES
    from aigc_compress.recipe import Recipe
    from aigc_compress.running import SEARCH, SearchConfig

    configs: dict[str, Any] = {name: each.config for name, each in PASSES.items()}
    schema = Recipe.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$defs"]["PassSpec"] = {
        "oneOf": [
            {
                "type": "object",
                "properties": {"pass": {"const": name}, "config": config.model_json_schema()},
                "required": ["pass"],
                "additionalProperties": False,
            }
            for name, config in {**configs, SEARCH: SearchConfig}.items()
        ]
    }
    show_json(schema)
