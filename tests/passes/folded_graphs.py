"""Graphs in ONNX's textual form, folded and compared with what they were."""

import numpy as np
from onnx import parser

from aigc_compress.artifact import Artifact
from aigc_compress.engines.ort import OrtSession
from aigc_compress.passes import Context
from aigc_compress.passes.fold import FoldConfig, FoldPass
from aigc_compress.passes.operators import all_nodes


def parse(text, *, opset=17, ir_version=8):
    return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}')


def feeds_of(*shapes, name="x"):
    rng = np.random.default_rng(0)
    return tuple({name: rng.standard_normal(shape).astype(np.float32)} for shape in shapes)


def fold(model, feeds, **settings):
    """Fold a graph, compare it with the one before, and return it and the numbers."""
    result = FoldPass().run(Artifact("onnx", model), FoldConfig(**settings), Context(feeds))
    before, after = (
        OrtSession(Artifact("onnx", each), threads=1) for each in (model, result.payload)
    )
    for each in feeds:
        wanted, found = before.run(each), after.run(each)
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5)
    return result.payload, result.history[-1].numbers


def types(model):
    return sorted(node.op_type for node in all_nodes(model.graph))
