"""ONNX Runtime's other execution providers: none goes back to the CPU without a word."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from aigc_compress.artifact import Artifact
from aigc_compress.engines import ENGINES, Remarks, ort
from aigc_compress.engines.ort import OrtEngine
from aigc_compress.errors import NotOnThisMachineError, PassError


def graph(op="Relu"):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node(op, ["e"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    return Artifact("onnx", model)


def test_nodes_that_a_provider_leaves_to_the_cpu_are_named():
    # This provider is in every package of ONNX Runtime and takes no ordinary node.
    session = OrtEngine("ort-azure", "AzureExecutionProvider").load(graph(), threads=1)
    assert isinstance(session, Remarks)
    (told,) = session.remarks
    assert told.startswith("AzureExecutionProvider left 2 nodes to the CPU: ")
    assert "1 Exp" in told
    assert "1 Relu" in told
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], np.exp(x), rtol=1e-6)


def test_the_cpu_has_nothing_to_say():
    assert ENGINES["ort"].load(graph(), threads=1).remarks == ()


def test_a_provider_that_does_not_start_is_an_error_and_not_the_cpu():
    absent = OrtEngine("ort-rocm", "XnnpackExecutionProvider")
    if absent.availability().is_available:
        pytest.skip("this build has it")
    with pytest.raises(NotOnThisMachineError, match="does not start here"):
        absent.load(graph(), threads=1)


def test_a_graph_that_another_provider_refuses_is_one_line():
    with pytest.raises(PassError, match="does not load this graph") as told:
        OrtEngine("ort-azure", "AzureExecutionProvider").load(graph("NoSuchOp"), threads=1)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("provider", "option"),
    [
        ("OpenVINOExecutionProvider", "num_of_threads"),
        ("XnnpackExecutionProvider", "intra_op_num_threads"),
    ],
)
def test_a_provider_with_threads_of_its_own_is_told_their_number(provider, option, monkeypatch):
    asked = []

    def create(name, settings, model, options):
        asked.append((name, settings))
        raise PassError("enough")

    monkeypatch.setattr(ort, "_create_session_on", create)
    with pytest.raises(PassError, match="enough"):
        OrtEngine("ort-x", provider).load(graph(), threads=3)
    assert asked == [(provider, {option: "3"})]
