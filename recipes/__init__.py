"""The shipped recipes: YAML files, found by name with `aigc_compress.recipe.load_recipe`."""
