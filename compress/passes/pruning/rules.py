"""How operators of an exported program hand channels on; to support one, name its rule in RULES.

A rule reads the marks of an operator's inputs, ties what must go together, and returns the marks
of its outputs. An operator without a rule keeps all channels that it meets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from .calls import Call, Weight
from .marks import Ids, Marks

__all__ = ["apply_rule"]


def apply_rule(call: Call) -> tuple[Marks, ...]:
    """Tie what the operator ties, and return the marks of its results."""
    rule = RULES.get(call.name) or (_pointwise if call.is_pointwise else _unknown)
    made = rule(call)
    return made if isinstance(made, tuple) else (made,)


def _unknown(call: Call) -> tuple[Marks, ...]:
    for each in call.operands:
        call.keep(each, f"no rule says how {call.name} treats channels")
    return tuple(Marks(shape) for shape in call.shapes)


def _pointwise(call: Call) -> Marks:
    """Tie operands index by index, except along axes that are stretched."""
    shape = call.shape
    axis, ids = None, None
    for position in range(-len(shape), 0):
        rows = []
        for each in call.operands:
            if len(each.shape) >= -position and each.shape[position] == shape[position]:
                rows.append(each.along(position))
                if isinstance(each, Marks) and each.axis == len(each.shape) + position:
                    axis, ids = len(shape) + position, rows[0]
        call.tie_rows(rows)
    return Marks(shape, axis, ids)


def _same(call: Call, name: str = "input") -> Marks:
    operand = call[name] if call[name] is not None else call["self"]
    if isinstance(operand, Weight):
        call.keep(operand, f"{call.name} reads it")
        return Marks(call.shape)
    return Marks(call.shape, operand.axis, operand.ids)


def _convolution(call: Call, *, spatial: int, transposed: bool = False) -> Marks:
    """Filters are (out, in / groups, ...), or (in, out / groups, ...) of a transposed one."""
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"] or 1
    if not isinstance(weight, Weight):
        return _unknown(call)[0]
    tie, axis = call.registry.tie, len(x.shape) - spatial - 1
    windows = x.shape if transposed else call.shape
    times = math.prod(windows[:axis] + windows[axis + 1 :])
    before = call.channels(x, axis)
    reads, makes = (0, 1) if transposed else (1, 0)
    read, made = call.multiplied(weight, reads=reads, makes=makes, times=times)
    if groups == 1:
        tie(before, read)
        after = made
    elif groups == len(before):  # depthwise
        after = np.repeat(before, call.shape[axis] // groups)
        tie(before if transposed else after, weight.along(0))
    elif transposed:
        tie(before, read)
        after = np.tile(made, groups)
        call.tie_rows(before.reshape(groups, -1))
    else:
        tie(before[: len(read)], read)
        after = made
        call.tie_rows(before.reshape(groups, -1))
        call.tie_rows(after.reshape(groups, -1))
    if isinstance(bias, Weight):
        tie(after, bias.along(0))
    return Marks.of(call.shape, axis, after)


def _linear(call: Call) -> Marks:
    x, weight, bias = call["input"], call["weight"], call["bias"]
    if not isinstance(weight, Weight) or isinstance(x, Weight):
        return _unknown(call)[0]
    times = math.prod(x.shape[:-1])
    read, made = call.multiplied(weight, reads=1, makes=0, times=times)
    call.registry.tie(call.channels(x, -1), read)
    if isinstance(bias, Weight):
        call.registry.tie(made, bias.along(0))
    return Marks.of(call.shape, -1, made)


def _matmul(call: Call) -> Marks:
    """Products of activations: what lies on the batch axes, as heads do, goes together."""
    one, other = call["self"], call["other"] if call["other"] is not None else call["mat2"]
    if isinstance(one, Marks) and isinstance(other, Weight) and len(other.shape) == 2:
        times = math.prod(one.shape[:-1])
        read, made = call.multiplied(other, reads=0, makes=1, times=times)
        call.registry.tie(call.channels(one, -1), read)
        return Marks.of(call.shape, -1, made)
    both = [each for each in (one, other) if isinstance(each, Marks) and len(each.shape) > 1]
    if len(both) < 2:
        return _unknown(call)[0]
    left, right = both
    call.registry.tie(left.along(-1), right.along(-2))
    found = [_in_product(left, call.shape, -1), _in_product(right, call.shape, -2)]
    first = next((each for each in found if each.axis is not None), None)
    if first is None or first.axis is None or first.ids is None:
        return Marks(call.shape)
    for each in found:
        if each.axis not in (None, first.axis):
            call.keep(each, f"{call.name} multiplies them with other channels")
        elif first.axis < len(call.shape) - 2:  # where there are none, these stay too
            call.registry.tie(first.ids, each.along(first.axis))
    return first


def _in_product(operand: Marks, shape: tuple[int, ...], contracted: int) -> Marks:
    """Return an operand's marks where they lie in a product; none on the axis that is summed."""
    if operand.axis is None or operand.axis - len(operand.shape) == contracted:
        return Marks(shape)
    return Marks(shape, operand.axis - len(operand.shape) + len(shape), operand.ids)


def _channel_norm(call: Call) -> Marks:
    """Batch norm and instance norm: every channel for itself."""
    x = call["input"]
    ids = call.channels(x, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(call[name], Weight):
            call.registry.tie(ids, call[name].along(0))
    return Marks.of(call.shape, 1, ids)


def _group_norm(call: Call) -> Marks:
    """A group's mean is taken over all of its channels, so a group goes as a whole."""
    for row in call.channels(call["input"], 1).reshape(call["num_groups"], -1):
        call.registry.merge(row)
    return _channel_norm(call)


def _layer_norm(call: Call) -> Marks:
    x, first = call["input"], len(call.shape) - len(call["normalized_shape"])
    if isinstance(x, Marks) and x.axis is not None and x.axis >= first:
        call.keep(x, "a layer norm takes its mean over them")
        return Marks(call.shape)
    return _same(call)


def _glu(call: Call) -> Marks:
    """Tie the halves: one gates the other."""
    x, axis = call["self"], call["dim"] if call["dim"] is not None else -1
    first, second = call.channels(x, axis).reshape(2, -1)
    call.registry.tie(first, second)
    return Marks.of(call.shape, axis, first)


def _prelu(call: Call) -> Marks:
    x, weight = call["self"], call["weight"]
    if isinstance(weight, Weight) and weight.shape[0] > 1:
        call.registry.tie(call.channels(x, 1), weight.along(0))
    return _same(call, "self")


def _embedding(call: Call) -> Marks:
    weight = call["weight"]
    if not isinstance(weight, Weight):
        return _unknown(call)[0]
    call.registry.makers.append((weight.name, 1))
    return Marks.of(call.shape, -1, weight.along(1))


def _recurrent(call: Call, *, gates: int) -> tuple[Marks, ...]:
    """LSTM and GRU: the rows of all gates of a unit, and the columns that read its state.

    A state that is an input or output of the model has as many entries as units are left.
    """
    layers, directions = call["num_layers"], 2 if call["bidirectional"] else 1
    per_cell = len(call["params"]) // (layers * directions)
    if per_cell not in (2, 4) or not all(isinstance(each, Weight) for each in call["params"]):
        return _unknown(call)  # projections, or weights that are computed
    before = call.channels(call["input"], -1)
    weights = iter(call["params"])
    states_ids: list[Ids] = []
    for _ in range(layers):
        made = []
        for _ in range(directions):
            cell = [next(weights) for _ in range(per_cell)]
            call.registry.tie(before, cell[0].along(1))
            made.append(_tie_gates(call, cell, gates, calls=math.prod(call["input"].shape[:-1])))
        before = np.concatenate(made)
        states_ids += made
    call.registry.level.append(tuple((each.name, 1) for each in call["params"][1::per_cell]))
    given = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    for state in given:
        if isinstance(state, Marks) and state.axis is not None and len(states_ids) == 1:
            call.registry.tie(call.channels(state, -1), states_ids[0])
        elif isinstance(state, Weight) or state.axis is not None:
            call.keep(state, f"they begin the states of several layers of {call.name}")
    return Marks.of(call.shapes[0], -1, before), *(Marks(each) for each in call.shapes[1:])


def _cell(call: Call, *, gates: int) -> tuple[Marks, ...]:
    """One step of an LSTM or GRU, as a loop in Python calls it."""
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    weights = [call[name] for name in names if isinstance(call[name], Weight)]
    if len(weights) not in (2, 4):
        return _unknown(call)
    call.registry.tie(call.channels(call["input"], -1), weights[0].along(1))
    units = _tie_gates(call, weights, gates, calls=math.prod(call["input"].shape[:-1]))
    given = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    for state in given:
        if isinstance(state, Weight) or state.axis is not None:
            call.registry.tie(call.channels(state, -1), units)
    return tuple(Marks.of(shape, -1, units) for shape in call.shapes)


def _tie_gates(call: Call, cell: Sequence[Weight], gates: int, *, calls: int) -> Ids:
    units, _ = call.multiplied(cell[1], reads=1, makes=1, times=calls)
    call.registry.uses[cell[0].name] += calls
    for each in cell:
        for rows in each.along(0).reshape(gates, -1):
            call.registry.tie(units, rows)
    return units


def _attention(call: Call) -> Marks:
    """Scaled dot products: heads (axis -3) go as a whole, with the width of a head as it is."""
    parts = [call["query"], call["key"], call["value"]]
    if call["enable_gqa"] or any(len(each.shape) < 4 for each in parts):
        return _unknown(call)[0]
    rows = [call.channels(each, -3) for each in parts]
    call.tie_rows(rows)
    return Marks.of(call.shape, -3, rows[0])


def _joined(call: Call) -> Marks:
    """Concatenation: behind each other along the channels' axis, else index by index."""
    parts = [each for each in call["tensors"] if each.shape != (0,)]
    axis = (call["dim"] or 0) % len(call.shape)
    marked = next((p.axis for p in parts if isinstance(p, Marks) and p.axis is not None), None)
    if marked is None or marked == axis:
        return Marks.of(call.shape, axis, np.concatenate([call.channels(p, axis) for p in parts]))
    rows = [call.channels(each, marked) for each in parts]
    call.tie_rows(rows)
    return Marks.of(call.shape, marked, rows[0])


def _stacked(call: Call) -> Marks:
    parts, axis = call["tensors"], (call["dim"] or 0) % len(call.shape)
    marked = next((p.axis for p in parts if isinstance(p, Marks) and p.axis is not None), None)
    if marked is None:
        return _unknown(call)[0]
    rows = [call.channels(each, marked) for each in parts]
    call.tie_rows(rows)
    return Marks.of(call.shape, marked + (axis <= marked), rows[0])


def _reduced(call: Call, dims: str = "dim") -> Marks:
    """Means, sums, softmax: over other axes than the channels' they change nothing."""
    x = call["self"] if call["self"] is not None else call["input"]
    over = call[dims] if call[dims] not in (None, []) else range(len(x.shape))
    axes = [each % len(x.shape) for each in (over if not isinstance(over, int) else [over])]
    if isinstance(x, Weight) or x.axis is None or x.axis in axes:
        call.keep(x, f"{call.name} is taken over them")
        return Marks(call.shape)
    gone = 0 if len(call.shape) == len(x.shape) else sum(each < x.axis for each in axes)
    return Marks(call.shape, x.axis - gone, x.ids)


def _spatial(call: Call, *, spatial: int) -> Marks:
    """Pooling, padding, resizing: the channels' axis comes before the spatial ones."""
    x = call["self"] if call["self"] is not None else call["input"]
    axis = len(call.shape) - spatial - 1
    return Marks.of(call.shape, axis, call.channels(x, axis))


def _padded(call: Call) -> Marks:
    x = call["self"]
    if isinstance(x, Marks) and (x.axis is None or call.shape[x.axis] == x.shape[x.axis]):
        return Marks(call.shape, x.axis, x.ids)
    return _moved(call)[0]


def _moved(call: Call) -> tuple[Marks, ...]:
    """Operators that only move elements: run them on the ids and see where these went."""
    x = call["self"] if call["self"] is not None else call["input"]
    if isinstance(x, Weight):
        call.keep(x, f"{call.name} moves its elements")
        return tuple(Marks(shape) for shape in call.shapes)
    if x.axis is None or x.ids is None:
        return tuple(Marks(shape) for shape in call.shapes)
    size = [1] * len(x.shape)
    size[x.axis] = -1
    elements = torch.from_numpy(x.ids).reshape(size).expand(x.shape).contiguous()
    rest = {k: v for k, v in call.arguments.items() if v is not x}
    made = call.target(elements, **rest)
    return tuple(
        _settled(call, each) for each in (made if isinstance(made, (list, tuple)) else [made])
    )


def _settled(call: Call, elements: torch.Tensor) -> Marks:
    """Return the marks of ids that were moved; they may differ along one axis alone."""
    shape, ids = tuple(elements.shape), elements.numpy()
    varying = [
        axis
        for axis in range(ids.ndim)
        if ids.shape[axis] > 1 and (ids != ids.take([0], axis)).any()
    ]
    if not varying:
        call.registry.fix(np.unique(ids), f"{call.name} takes single channels out")
        return Marks(shape)
    axis = varying[0]
    if len(varying) > 1:
        fork = call.name, shape
        call.registry.forks[fork] = tuple(varying)
        axis = call.registry.choices.get(fork, axis)
    rows = np.moveaxis(ids, axis, 0).reshape(shape[axis], -1)
    for row in rows if len(varying) > 1 else []:
        call.registry.merge(np.unique(row))
    return Marks(shape, axis, np.ascontiguousarray(rows[:, 0]))


Rule = Callable[[Call], Marks | tuple[Marks, ...]]


def _by_dimensions(rule: Callable[..., Marks], *names: str) -> dict[str, Rule]:
    """Return the rules of operators whose names tell how many spatial axes there are."""
    return {
        name.replace("#", str(spatial)): partial(rule, spatial=spatial)
        for name in names
        for spatial in (1, 2, 3)
    }


def _all(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: Mapping[str, Rule] = {
    **_by_dimensions(_convolution, "conv#d"),
    **_by_dimensions(partial(_convolution, transposed=True), "conv_transpose#d"),
    **_by_dimensions(_spatial, "avg_pool#d", "adaptive_avg_pool#d"),
    **_by_dimensions(_spatial, "max_pool#d", "adaptive_max_pool#d"),
    **_by_dimensions(_spatial, "upsample_nearest#d", "_upsample_nearest_exact#d"),
    "upsample_linear1d": partial(_spatial, spatial=1),
    "upsample_bilinear2d": partial(_spatial, spatial=2),
    "upsample_bicubic2d": partial(_spatial, spatial=2),
    "upsample_trilinear3d": partial(_spatial, spatial=3),
    "linear": _linear,
    "matmul": _matmul,
    "bmm": _matmul,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _channel_norm,
    "instance_norm": _channel_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "glu": _glu,
    "prelu": _prelu,
    "embedding": _embedding,
    "lstm": partial(_recurrent, gates=4),
    "gru": partial(_recurrent, gates=3),
    "rnn_tanh": partial(_recurrent, gates=1),
    "rnn_relu": partial(_recurrent, gates=1),
    "lstm_cell": partial(_cell, gates=4),
    "gru_cell": partial(_cell, gates=3),
    "rnn_tanh_cell": partial(_cell, gates=1),
    "rnn_relu_cell": partial(_cell, gates=1),
    "cat": _joined,
    "concat": _joined,
    "stack": _stacked,
    "pad": _padded,
    "constant_pad_nd": _padded,
    **_all(_same, "dropout dropout_ alpha_dropout feature_dropout contiguous clone detach"),
    **_all(_same, "to type_as _to_copy zeros_like ones_like"),
    **_all(_pointwise, "hardswish hardswish_ log_sigmoid rsub"),  # without torch's tag
    **_all(_reduced, "mean sum amax amin prod var std argmax norm cumsum"),
    **_all(_reduced, "softmax _softmax log_softmax _log_softmax logsumexp"),
    **_all(_moved, "view view_as reshape _unsafe_view flatten unflatten squeeze unsqueeze"),
    **_all(_moved, "permute transpose movedim t expand repeat flip roll unfold"),
    **_all(_moved, "slice select narrow chunk split split_with_sizes unbind"),
    **_all(_moved, "pixel_shuffle pixel_unshuffle channel_shuffle"),
}
