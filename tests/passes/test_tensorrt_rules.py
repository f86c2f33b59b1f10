"""The linter says what the real parser and builder say; both run without a GPU."""

import pytest
import tensorrt_graphs
from onnx.backend.test.loader import load_model_tests

from aigc_compress.errors import PassError
from aigc_compress.passes.tensorrt import lint

LEGAL = dict(tensorrt_graphs.legal())
ILLEGAL = dict(tensorrt_graphs.illegal())
needs_tensorrt = pytest.mark.tensorrt


@pytest.fixture(scope="module")
def trt():
    reason = "needs tensorrt-rtx, which parses and builds without a GPU"
    return pytest.importorskip("tensorrt_rtx", reason=reason)


@pytest.mark.parametrize("name", LEGAL)
def test_nothing_is_said_of_a_legal_graph(name):
    assert lint(LEGAL[name]) == []


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_graph_is_named_with_what_helps(name):
    found = lint(ILLEGAL[name])
    assert found
    assert all(each.reason and each.help and each.op for each in found)


@needs_tensorrt
@pytest.mark.parametrize("name", [*LEGAL, *ILLEGAL])
def test_the_builder_agrees(name, trt):
    from aigc_compress.engines.trt import build_engine

    if name in LEGAL:
        assert build_engine(LEGAL[name].SerializeToString())
        return
    with pytest.raises(PassError, match="TensorRT"):
        build_engine(ILLEGAL[name].SerializeToString())


@needs_tensorrt
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from the cases' own data
def test_the_parser_agrees_on_the_node_tests_of_onnx(trt):
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    alarms, missed, count = [], [], 0
    for case in load_model_tests(kind="node"):
        network = builder.create_network(0)  # the parser does not keep it alive
        parser = trt.OnnxParser(network, logger)
        is_taken = parser.parse(case.model.SerializeToString())
        is_blamed = any(each.stage == "parser" for each in lint(case.model))
        count += 1
        if is_taken and is_blamed:
            alarms.append(case.name)
        elif not is_taken and not is_blamed:
            missed.append(case.name)
    assert count > 1500
    assert alarms == []
    assert len(missed) < 0.01 * count, missed
