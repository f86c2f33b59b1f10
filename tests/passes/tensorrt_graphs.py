"""Small graphs, each with whether TensorRT takes it, to hold the linter against the real parser."""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

IMAGE = "float[1,8,12,12] x"
RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def half(*shape):
    return floats(*shape).astype(np.float16)


def bytes8(*shape):
    return RNG.integers(-100, 100, shape).astype(np.int8)


def model(body, inputs=IMAGE, output="float y", *, opset=20, domain="", **weights) -> ModelProto:
    """Return a graph from ONNX's own text form and its constants."""
    graph = parser.parse_graph(f"g ({inputs}) => ({output}) {{ {body} }}")
    graph.initializer.extend(
        each if isinstance(each, TensorProto) else numpy_helper.from_array(np.asarray(each), name)
        for name, each in weights.items()
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    for node in made.graph.node:
        if domain and node.op_type.startswith(("Q", "Fused", "Dynamic", "Bias")):
            node.domain = domain
    return made


def of_type(kind, array, name="w"):
    return helper.make_tensor(name, kind, array.shape, array.ravel().tolist())


SCALE, ZERO = {"s": np.float32(0.05)}, {"z": np.int8(0)}
PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "


def quantized(op, weight_shape, *, axis=None, zero=0, kind=np.int8, bias="", inputs=IMAGE, **more):
    """A layer between int8 tensors, its weights stored as integers."""
    channels = weight_shape[axis] if axis is not None else 1
    scale = np.full(channels, 0.02, np.float32) if axis is not None else np.float32(0.02)
    zeros = np.zeros(channels, np.int8) if axis is not None else np.int8(0)
    place = f"<axis={axis}>" if axis is not None else ""
    body = f"{PAIR} w = DequantizeLinear{place}(wq, ws, wz) {bias} y = {op}"
    weights = {"wq": bytes8(*weight_shape), "ws": scale, "wz": zeros}
    return model(body, inputs, **weights, **SCALE, z=kind(zero), **more)


ROWS = "float[4,8] x"
TEXT = "float[5,1,8] x"
STORED_BIAS = "b = DequantizeLinear(bq, bs)"
LSTM = {"w": floats(1, 64, 8), "r": floats(1, 64, 16), "b": floats(1, 128)}
GRU = {"w": floats(1, 48, 8), "r": floats(1, 48, 16), "b": floats(1, 96)}
CONV = {"w": floats(16, 8, 3, 3)}
UP = {"w": floats(8, 16, 4, 4)}


def legal():
    """Yield (name, graph) of what TensorRT takes."""
    yield "conv", model("y = Conv(x, w)", **CONV)
    yield "conv, opset 17", model("y = Conv(x, w)", opset=17, **CONV)
    yield "conv, opset 11", model("y = Conv(x, w)", opset=11, **CONV)
    yield "grouped", model("y = Conv<group=8>(x, w)", w=floats(8, 1, 3, 3))
    yield "conv 1-d", model("y = Conv(x, w)", "float[1,8,20] x", w=floats(4, 8, 3))
    yield "conv 3-d", model("y = Conv(x, w)", "float[1,2,5,5,5] x", w=floats(4, 2, 3, 3, 3))
    yield (
        "conv in half",
        model("y = Conv(x, w)", "float16[1,8,12,12] x", "float16 y", w=half(16, 8, 3, 3)),
    )
    yield "transposed", model("y = ConvTranspose<strides=[2,2]>(x, w)", **UP)
    yield "gemm", model("y = Gemm(x, w)", ROWS, w=floats(8, 4))
    yield "matmul", model("y = MatMul(x, w)", ROWS, w=floats(8, 4))
    yield "dynamic batch", model("y = MatMul(x, w)", "float[batch,8] x", w=floats(8, 4))
    yield "lstm", model("y = LSTM<hidden_size=16>(x, w, r, b)", TEXT, **LSTM)
    yield "gru", model("y = GRU<hidden_size=16,linear_before_reset=1>(x, w, r, b)", TEXT, **GRU)
    yield "int8 conv", quantized("Conv(d, w)", (16, 8, 3, 3), axis=0)
    yield "int8 conv per tensor", quantized("Conv(d, w)", (16, 8, 3, 3))
    yield "int8 conv, float bias", quantized("Conv(d, w, b)", (16, 8, 3, 3), axis=0, b=floats(16))
    yield "int8 transposed", quantized("ConvTranspose(d, w)", (8, 16, 4, 4), axis=1)
    yield "int8 gemm", quantized("Gemm(d, w)", (8, 4), axis=1, inputs=ROWS)
    yield "int8 matmul", quantized("MatMul(d, w)", (8, 4), axis=1, inputs=ROWS)
    yield (
        "int8 residual",
        model(
            f"{PAIR} w = DequantizeLinear<axis=0>(wq, ws, wz) c = Conv<pads=[1,1,1,1]>(d, w)"
            " t = Add(c, d) y = Relu(t)",
            wq=bytes8(8, 8, 3, 3),
            ws=np.full(8, 0.02, np.float32),
            wz=np.zeros(8, np.int8),
            **SCALE,
            **ZERO,
        ),
    )
    yield "pooling", model("y = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)")
    yield "norms", model("a = InstanceNormalization(x, g, h) y = Relu(a)", g=floats(8), h=floats(8))
    yield "mean", model("y = ReduceMean(x, a)", a=np.array([2, 3], np.int64))
    yield "nearest", model('y = Resize<mode="nearest">(x, , s)', s=np.float32([1, 1, 2, 2]))
    yield "linear", model('y = Resize<mode="linear">(x, , s)', s=np.float32([1, 1, 2, 2]))
    yield "topk", model("y, i = TopK(x, k)", ROWS, "float y, int64 i", k=np.array([3], np.int64))
    yield (
        "pictures as bytes",
        model("a = Cast<to=1>(x) y = Conv(a, w)", "uint8[1,8,12,12] x", **CONV),
    )
    yield "scatter", model("y = ScatterND(x, i, u)", ROWS, i=np.array([[1]]), u=floats(1, 8))
    yield "gather", model("y = Gather(w, x)", "int64[5] x", w=floats(9, 3))
    yield (
        "attention by hand",
        model(
            "k = Transpose<perm=[1,0]>(x) p = MatMul(x, k) a = Softmax(p) y = MatMul(a, x)", ROWS
        ),
    )
    yield "double", model("y = MatMul(x, w)", "double[4,8] x", "double y", w=np.ones((8, 4)))

    yield "unsigned from 0", quantized("Conv(d, w)", (16, 8, 3, 3), axis=0, kind=np.uint8)
    yield (
        "scale at run time",
        model(
            "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", f"{ROWS}, float s", **ZERO
        ),
    )
    yield (
        "conv in bfloat16",
        model(
            "y = Conv(x, w)",
            "bfloat16[1,8,12,12] x",
            "bfloat16 y",
            w=of_type(TensorProto.BFLOAT16, floats(16, 8, 3, 3)),
        ),
    )
    yield (
        "a loop",
        model(
            "y = Loop(n, c, x) <body = b (int64 i, bool c0, float[4,8] a)"
            " => (bool c1, float[4,8] r) { c1 = Identity(c0) r = Add(a, a) }>",
            ROWS,
            n=np.int64(3),
            c=np.bool_(True),
        ),
    )


def illegal():
    """Yield (name, graph) of what TensorRT refuses."""
    yield "asymmetric", quantized("Conv(d, w)", (16, 8, 3, 3), axis=0, zero=3)
    yield "unsigned", quantized("Conv(d, w)", (16, 8, 3, 3), axis=0, zero=128, kind=np.uint8)
    yield (
        "stored bias",
        quantized(
            "Conv(d, w, b)",
            (16, 8, 3, 3),
            axis=0,
            bias=STORED_BIAS,
            bq=np.ones(16, np.int32),
            bs=np.float32(0.001),
        ),
    )
    yield "negative scale", model(f"{PAIR} y = Relu(d)", s=np.float32(-1), **ZERO)
    yield (
        "integer conv",
        model("y = ConvInteger(x, w)", "int8[1,8,12,12] x", "int32 y", w=bytes8(4, 8, 3, 3)),
    )
    yield (
        "integer product",
        model("y = MatMulInteger(x, w)", "int8[4,8] x", "int32 y", w=bytes8(8, 4)),
    )
    yield (
        "QOperator",
        model(
            "y = QLinearMatMul(x, s, z, w, s, z, s, z)",
            "int8[4,8] x",
            "int8 y",
            w=bytes8(8, 4),
            **SCALE,
            **ZERO,
        ),
    )
    yield (
        "dynamic",
        model("y, s, z = DynamicQuantizeLinear(x)", ROWS, "uint8 y, float s, uint8 z"),
    )
    for op in ("QLinearAdd(x, s, z, x, s, z, s, z)", "QLinearSigmoid(x, s, z, s, z)"):
        yield (
            op.split("(", maxsplit=1)[0],
            model(
                f"y = {op}",
                "int8[4,8] x",
                "int8 y",
                domain="com.microsoft",
                **SCALE,
                **ZERO,
            ),
        )
    yield (
        "dynamic LSTM",
        model(
            "y = DynamicQuantizeLSTM<hidden_size=16>(x, w, r, b)",
            TEXT,
            domain="com.microsoft",
            **LSTM,
        ),
    )
    yield "fused", model("y = FusedMatMul(x, w)", ROWS, domain="com.microsoft", w=floats(8, 4))
    yield "int16", model("y = Cast<to=1>(x)", "int16[4] x")
    yield "text", model("y = Identity(x)", "string[4] x", "string y")
    yield "unsigned 64", model("y = Cast<to=1>(x)", "uint64[4] x")
    yield "added bytes", model("y = Add(x, x)", "uint8[4] x", "uint8 y")
    yield (
        "scatter by adding",
        model('y = ScatterND<reduction="add">(x, i, u)', ROWS, i=np.array([[1]]), u=floats(1, 8)),
    )
    yield (
        "scatter elements by adding",
        model(
            'y = ScatterElements<reduction="add">(x, i, u)',
            ROWS,
            i=np.array([[1, 2]]),
            u=floats(1, 2),
        ),
    )
    yield "axes at run time", model("y = ReduceSum(x, a)", f"{ROWS}, int64[1] a")
    yield "new axes at run time", model("y = Unsqueeze(x, a)", f"{ROWS}, int64[1] a")
    yield "dilated pooling", model("y = MaxPool<kernel_shape=[2,2],dilations=[2,2]>(x)")
    yield (
        "indices of pooling",
        model("y, i = MaxPool<kernel_shape=[2,2]>(x)", IMAGE, "float y, int64 i"),
    )
    yield (
        "antialiasing",
        model('y = Resize<mode="linear",antialias=1>(x, , s)', s=np.float32([1, 1, 0.5, 0.5])),
    )
    yield (
        "cropping",
        model(
            'y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, r, s)',
            r=np.float32([0, 0, 0, 0, 1, 1, 1, 1]),
            s=np.float32([1, 1, 2, 2]),
        ),
    )
    yield "spectrum", model("y = DFT<axis=1,onesided=1>(x)", "float[1,16,1] x", "float y", opset=17)
    yield "unique", model("y = Unique(x)", "float[9] x")
    yield "compressed", model("y = Compress(x, c)", "float[9] x, bool[9] c")
    yield "bits", model("y = BitwiseAnd(x, x)", "int32[4] x", "int32 y")
    yield "deformable", model("y = DeformConv(x, w, o)", f"{IMAGE}, float[1,18,10,10] o", **CONV)
    yield (
        "training",
        model(
            "y, m, v = BatchNormalization<training_mode=1>(x, a, a, a, a)",
            IMAGE,
            "float y, float m, float v",
            a=np.ones(8, np.float32),
        ),
    )
    yield (
        "statistics of a norm",
        model(
            "y, m, v = LayerNormalization(x, a)",
            ROWS,
            "float y, float m, float v",
            a=np.ones(8, np.float32),
        ),
    )
    yield "mod of floats", model("y = Mod(x, x)", ROWS)
    yield "boxes", model("y = NonMaxSuppression(x, c)", "float[1,9,4] x, float[1,1,9] c", "int64 y")
    yield (
        "zero point at run time",
        model(
            "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", f"{ROWS}, int8 z", **SCALE
        ),
    )
    yield "cast to 8-bit floats", model("y = Cast<to=17>(x)", ROWS, "float8e4m3fn y")
    yield (
        "branches of an If with unequal ranks",
        model(
            "first = Squeeze(x, axes) "
            "y = If(c) <then_branch = t () => (float[8] r) { r = Identity(first) },"
            " else_branch = e () => (float[1,8] o) { o = Identity(x) }>",
            "float[1,8] x, bool c",
            axes=np.int64([0]),
        ),
    )
    yield (
        "inside an If",
        model(
            "y = If(c) <then_branch = t () => (float r) { r = Det(x) },"
            " else_branch = e () => (float r2) { r2 = ReduceMax<keepdims=0>(x) }>",
            "float[4,4] x, bool c",
        ),
    )
