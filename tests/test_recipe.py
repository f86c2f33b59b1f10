import json

import numpy as np
import onnx
import pytest

from aigc_compress.artifact import Artifact
from aigc_compress.errors import InputFileError, UsageError
from aigc_compress.passes import Context
from aigc_compress.pipeline import check_steps, run_recipe
from aigc_compress.recipe import load_recipe, recipe_names
from aigc_compress.running import SEARCH, SearchConfig


def test_a_recipe_of_passes_alone_runs_on_a_tiny_model(tmp_path):
    (tmp_path / "static.yaml").write_text(
        "{name: static, description: two passes, passes: [{pass: fold}, {pass: quantize}]}"
    )
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] x) => (float[N,4,8,8] y) { y = Conv<pads = [1,1,1,1]>(x, w) }"""
    model = onnx.parser.parse_model(text)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    feeds = tuple({"x": rng.normal(size=(n, 3, 8, 8)).astype(np.float32)} for n in (1, 2))
    recipe = load_recipe(str(tmp_path / "static.yaml"))
    after = run_recipe(Artifact("onnx", model), recipe, Context(feeds, feeds))
    assert [step.name for step in after.history] == [each.pass_ for each in recipe.passes]


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_sound(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert check_steps(recipe, {SEARCH: SearchConfig})


BAD = """\
name: bad
description: wrong in several places
passes:
  - pass: prune
    config:
      ratio: 1.5
      multiples: 8
  - pass: prunee
  - pass: quantize
    config: {mode: fast}
"""


def test_all_faults_of_a_recipe_are_told_with_their_lines(tmp_path):
    (tmp_path / "bad.yaml").write_text(BAD)
    with pytest.raises(UsageError) as caught:
        check_steps(load_recipe(str(tmp_path / "bad.yaml")))
    told = str(caught.value)
    for place in (
        "line 6, passes.0.config.ratio",
        "line 7, passes.0.config.multiples",
        "line 8, passes.1.pass",
        "line 10, passes.2.config.mode",
    ):
        assert place in told
    assert "Did you mean" in told


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("passes: [", "is not YAML"),
        ("- 1", "has faults"),
        ("name: x\ndescription: y\npasses: []\n", "line 3, passes"),
        ("name: x\nother: y\npasses: [{pass: fold}]\n", "line 2, other"),
    ],
)
def test_files_that_are_no_recipes_are_refused(text, fault, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises((UsageError, InputFileError), match=fault):
        load_recipe(str(tmp_path / "r.yaml"))


def test_settings_are_overridden_by_pass_or_place(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "name: r\ndescription: d\npasses:\n"
        "  - pass: prune\n    config: {ratio: 0.5}\n  - pass: fold\n"
    )
    path = str(tmp_path / "r.yaml")
    overrides = {"prune.ratio": 0.25, "passes.1.opset": 18, "max_drop": "1%"}
    recipe = load_recipe(path, overrides)
    assert recipe.passes[0].config == {"ratio": 0.25}
    assert recipe.passes[1].config == {"opset": 18}
    assert recipe.max_drop == "1%"
    for key in ("distill.steps", "prune", "passes.7.ratio", "passes.x.ratio"):
        with pytest.raises(UsageError, match="has no pass"):
            load_recipe(path, {key: 1})


def test_recipes_are_listed_shown_and_described(workplace, run_cli):
    listed = json.loads(run_cli("recipes", "list", "--json").stdout)
    assert {each["name"] for each in listed["recipes"]} == set(recipe_names())
    (workplace / "mine.yaml").write_text(run_cli("recipes", "show", "int8").stdout)
    assert load_recipe("mine.yaml").name == "int8"
    schema = json.loads(run_cli("recipes", "schema").stdout)
    kinds = {each["properties"]["pass"]["const"] for each in schema["$defs"]["PassSpec"]["oneOf"]}
    assert {"prune", "distill", "search", "quantize"} <= kinds
