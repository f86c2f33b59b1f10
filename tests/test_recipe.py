import numpy as np
import onnx
import pytest

from aigc_compress.artifact import Artifact
from aigc_compress.passes import Context
from aigc_compress.pipeline import run_recipe
from aigc_compress.recipe import load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_runs_on_a_tiny_model(name):
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] x) => (float[N,4,8,8] y) { y = Conv<pads = [1,1,1,1]>(x, w) }"""
    model = onnx.parser.parse_model(text)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    feeds = tuple({"x": rng.normal(size=(n, 3, 8, 8)).astype(np.float32)} for n in (1, 2))
    recipe = load_recipe(name)
    assert recipe.name == name
    after = run_recipe(Artifact("onnx", model), recipe, Context(feeds, feeds))
    assert [step.name for step in after.history] == [each.pass_ for each in recipe.passes]
