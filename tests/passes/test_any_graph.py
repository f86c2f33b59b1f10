"""Every kind of graph is either folded with its numbers kept or refused with one clear error."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from aigc_compress import quantizing
from aigc_compress.artifact import Artifact, read_onnx
from aigc_compress.bench.latency import LatencyPlan
from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.engines.ort import OrtSession
from aigc_compress.errors import AigcCompressError
from aigc_compress.passes import Context, FoldConfig
from aigc_compress.pipeline import run_passes

CONV = """{ c = Conv <pads = [1, 1, 1, 1]> (x, w)
            n = BatchNormalization (c, s, s, t, v)
            y = Relu (n) }"""
TABLES = {"w": (4, 3, 3, 3), "s": (4,), "t": (4,), "v": (4,), "k": (3, 5), "wg": (4, 3)}


def parse(text, *, opset=17, ir_version=8, domains=""):
    """Return the model of a text; the tables that it reads but does not define are drawn."""
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{domains}]>'
    model = parser.parse_model(f"{header}\n{text}")
    rng = np.random.default_rng(0)
    stored = {each.name for each in model.graph.initializer}
    read = {name for node in all_nodes(model.graph) for name in node.input}
    for name, shape in TABLES.items():
        if name in read - stored:
            values = rng.uniform(0.2, 1, shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def all_nodes(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def plain():
    return parse(f"g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {CONV}")


def old_opset(opset):
    return parse(f"g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) {CONV}", opset=opset)


def weights_as_inputs():
    model = parse(
        f"g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) {CONV}", opset=11, ir_version=3
    )
    for each in model.graph.initializer:
        declared = helper.make_tensor_value_info(each.name, each.data_type, list(each.dims))
        model.graph.input.append(declared)
    return model


def branches():
    return parse("""g (float[N, 3] x, bool flag) => (float[N, 5] y) {
        y = If (flag) <
            then_branch = on () => (float[N, 5] a) { a = MatMul (x, k) },
            else_branch = off () => (float[N, 5] b) { m = MatMul (x, k)  b = Neg (m) }
        >
    }""")


def loop():
    return parse("""g (float[N, 4] x) => (float[N, 4] y)
        <int64 trips = {3}, bool go = {1}> {
        y = Loop (trips, go, x) <body = step (int64 i, bool c, float[N, 4] s)
            => (bool d, float[N, 4] u) {
            d = Identity (c)
            p = MatMul (s, wg)
            q = Transpose <perm = [1, 0]> (wg)
            u = MatMul (p, q)
        }>
    }""")


def scan():
    return parse("""g (float[5, 3] x) => (float[5, 3] y) <float[3] start = {0, 0, 0}> {
        last, y = Scan <num_scan_inputs = 1, body = step (float[3] before, float[3] now)
            => (float[3] after, float[3] out) {
            after = Add (before, now)
            out = Identity (after)
        }> (start, x)
    }""")


def dynamic_shapes():
    return parse("""g (float[batch, time, 3] x) => (float[batch, rows, 5] y) {
        m = MatMul (x, k)
        shape = Shape (m)
        zeros = ConstantOfShape (shape)
        y = Add (m, zeros)
    }""")


def omitted_inputs():
    return parse("""g (float[N, 4] x) => (float[N, 3] y)
        <float high = {6}, float[1, 8, 3] w1 = {1,2,3,4,5,6,7,8,9,10,11,12,
        1,2,3,4,5,6,7,8,9,10,11,12}> {
        m = MatMul (x, wg)
        y = Clip (m, , high)
    }""")


def whole_number_inputs():
    return parse("""g (int32[N] a, int64[N] b, bool[N] c) => (int64[N] y, bool[N] z) {
        d = Cast <to = 7> (a)
        e = Add (d, b)
        y = Where (c, e, b)
        z = Not (c)
    }""")


def inner_output():
    return parse(
        """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] c, float[N, 4, 8, 8] y) """ + CONV
    )


def passed_through():
    model = parse(
        "g (float[N, 3] x) => (float[N, 5] y, float[N, 3] z) { y = MatMul (x, k) z = Identity (x) }"
    )
    model.graph.output.append(model.graph.input[0])
    return model


def quantized_qdq():
    return parse("""g (float[2, 4] x) => (float[2, 2] y)
        <float s = {0.05}, int8 z = {0}, int8[4, 2] q = {1, -2, 3, 4, 5, 6, 7, 8}> {
        xq = QuantizeLinear (x, s, z)
        xf = DequantizeLinear (xq, s, z)
        wf = DequantizeLinear (q, s, z)
        y = MatMul (xf, wf)
    }""")


def quantized_qoperator():
    return parse("""g (float[2, 4] x) => (float[2, 2] y)
        <float s = {0.05}, uint8 z = {128}, uint8[4, 2] q = {1, 2, 3, 4, 5, 6, 7, 8}> {
        xq = QuantizeLinear (x, s, z)
        yq = QLinearMatMul (xq, s, z, q, s, z, s, z)
        y = DequantizeLinear (yq, s, z)
    }""")


def unknown_domain():
    return parse(
        "g (float[N, 3] x) => (float[N, 3] y) { y = custom.Wonder (x) }", domains=', "custom" : 1'
    )


def known_contributed_domain():
    return parse(
        """g (float[N, 3] x) => (float[N, 5] y) {
        m = MatMul (x, k)
        y = com.microsoft.Gelu (m)
    }""",
        domains=', "com.microsoft" : 1',
    )


def repeated_node_names():
    model = plain()
    for node in model.graph.node:
        node.name = "same"
    return model


def float16():
    rng = np.random.default_rng(0)
    half = numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float16), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", 4, 6, 6])
    graph = helper.make_graph(nodes, "g", [x], [y], [half])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def no_nodes():
    return parse("g (float[N, 3] x) => (float[N, 3] x) { }")


def sequences():
    return parse("""g (float[N, 3] x) => (float[M, 3] y) {
        e = Exp (x)
        parts = SequenceConstruct (x, e)
        y = ConcatFromSequence <axis = 0> (parts)
    }""")


def sequence_output():
    return parse("g (float[N, 3] x) => (seq(float[]) y) { y = SequenceConstruct (x, k) }")


def optional_values():
    return parse(
        """g (float[N, 3] x) => (float[N, 5] y) {
        o = Optional (x)
        h = OptionalGetElement (o)
        y = MatMul (h, k)
    }""",
        opset=18,
    )


def functions():
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N, 3] x) => (float[N, 5] y) <float[3, 5] k = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}> {
        m = local.twice <factor = 2.0> (x)
        y = MatMul (m, k)
    }
    <domain: "local", opset_import: ["" : 17]>
    twice <factor> (a) => (b) {
        f = Constant <value_float: float = @factor> ()
        b = Mul (a, f)
    }"""
    return parser.parse_model(text)


def no_elements():
    model = parse("""g (float[N, 3] x) => (float[N, 5] y) {
        j = Concat <axis = 0> (x, empty)
        y = MatMul (j, k)
    }""")
    empty = numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty")
    model.graph.initializer.append(empty)
    return model


def scalars():
    return parse("""g (float x) => (float y) <float two = {2}> {
        a = Mul (x, two)
        y = Add (a, two)
    }""")


def dead_ends():
    return parse("""g (float[N, 3] x, float[N, 3] unused) => (float[N, 5] y) {
        y = MatMul (x, k)
        z = Exp (y)
    }""")


def noise():
    return parse("""g (float[1, 3] x) => (float[1, 5] y) {
        r = RandomNormalLike (x)
        a = Add (x, r)
        y = MatMul (a, k)
    }""")


def initializer_as_output():
    return parse("g (float[N, 3] x) => (float[N, 5] y, float[3, 5] k) { y = MatMul (x, k) }")


GRAPHS = {
    make.__name__: make
    for make in (
        plain,
        weights_as_inputs,
        branches,
        loop,
        scan,
        dynamic_shapes,
        omitted_inputs,
        whole_number_inputs,
        inner_output,
        passed_through,
        quantized_qdq,
        quantized_qoperator,
        unknown_domain,
        known_contributed_domain,
        repeated_node_names,
        float16,
        no_nodes,
        sequences,
        sequence_output,
        optional_values,
        functions,
        no_elements,
        scalars,
        dead_ends,
        noise,
        initializer_as_output,
    )
}
GRAPHS |= {"opset_9": lambda: old_opset(9), "opset_11": lambda: old_opset(11)}
REFUSED = {"unknown_domain", "sequence_output", "repeated_node_names"}


QUICK = LatencyPlan(processes=1, blocks=2, block_ms=1.0, warmup_ms=1.0)


def feeds_of(model):
    constants = {each.name for each in model.graph.initializer}
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        shape = [dim.dim_value or 2 for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feeds[value.name] = np.asarray(rng.uniform(0, 3, shape)).astype(dtype)
    return feeds


def folded(model, *feeds):
    return run_passes(Artifact("onnx", model), [("fold", FoldConfig())], Context(feeds))


@pytest.mark.parametrize("name", sorted(GRAPHS.keys() - REFUSED))
def test_folding_keeps_the_numbers(name):
    model = GRAPHS[name]()
    feeds = feeds_of(model)
    after = folded(model, feeds).payload
    wanted, found = (
        OrtSession(Artifact("onnx", each), threads=1).run(feeds) for each in (model, after)
    )
    assert wanted.keys() == found.keys()
    assert lowest_agreement_db([wanted], [found]) >= FoldConfig().least_sqnr_db


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_run_or_compared_is_one_clear_error(name):
    model = GRAPHS[name]()
    with pytest.raises(AigcCompressError, match=r"^[^\n]+$"):
        folded(model, feeds_of(model))


def test_a_graph_whose_weights_lie_in_a_file_beside_it_is_folded(tmp_path):
    model = plain()
    onnx.save(model, tmp_path / "g.onnx", save_as_external_data=True, size_threshold=0)
    artifact = read_onnx(tmp_path / "g.onnx")
    after = run_passes(artifact, [("fold", FoldConfig())], Context((feeds_of(model),))).payload
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu"]


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_quantizing_works_or_tells_why_not_in_one_line(name, tmp_path):
    source, output = tmp_path / "g.onnx", tmp_path / "int8.onnx"
    onnx.save(GRAPHS[name](), source)
    options = quantizing.QuantizeOptions(plan=QUICK, samples=2)
    try:
        quantizing.quantize(source, output, options)
    except AigcCompressError as refusal:
        told = str(refusal)
    else:
        onnx.checker.check_model(onnx.load(output))
        told = "done"
    assert told
    assert "\n" not in told
    assert output.exists() == (told == "done")
