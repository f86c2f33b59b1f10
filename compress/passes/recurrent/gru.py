"""GRU as plain operators, so that its products can be integer ones (ONNX operator GRU, opset 14).

X W^T of all time steps is one product ahead of the steps. A single step then stands in the graph
as it is; more are a Scan. Against ONNX Runtime's float GRU, 2 x 512 with 128 inputs, batch 1, one
thread of a CPU with AVX-512 VNNI: 2.3 times as fast for a step known to be the only one, 2.0 for a
Scan of one step, 2.2 for 64 steps. Loop was slower than Scan (1.77 against 1.90 then), and an If
that picks the step form at run time costs as much as it gains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from aigc_compress.passes.draft import Draft

from .layer import Layer
from .products import Products

__all__ = ["decompose_gru"]

Floats = NDArray[np.float32]


def decompose_gru(
    node: NodeProto, layer: Layer, *, prefix: str, opset: int, products: Products
) -> tuple[Draft, str]:
    """Write the nodes that take a GRU's place, under its own output names.

    States have the shape (1, N, H) throughout, so ONNX's (T, D, N, H) and (D, N, H) need no
    reshaping in the steps. Axes that are dynamic stay so.

    Returns:
        The nodes, and the form: `step` where T is known to be 1, else `scan`.
    """
    draft = Draft(prefix, opset)
    is_step = layer.steps == 1
    results = []
    for index, state in enumerate(_first_states(draft, node, layer)):
        direction = _read_direction(layer, index, products)
        rows = direction.project(draft, node.input[0])
        write = _write_step if is_step else _write_scan
        results.append(write(draft, direction, rows=rows, state=state))
    sequences, lasts = [y for y, _ in results], [last for _, last in results]
    for position, (parts, axis) in enumerate(((sequences, 1), (lasts, 0))):
        whole = draft.add("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]
        if len(node.output) > position and node.output[position]:
            draft.rename(whole, node.output[position])
    return draft, "step" if is_step else "scan"


@dataclass(frozen=True, eq=False)
class _Direction:
    """One direction's arithmetic, columns in ONNX's gate order z, r, n.

    Attributes:
        index: 0, or 1 for the second one.
        w: (I, 3H).
        r: (H, 3H).
        input_bias: (3H,), added to X W.
        state_bias: (3H,), added to H R; zeros unless `is_linear_first`.
        is_linear_first: n = tanh(X W + r (H R + b)); else n = tanh(X W + (r H) R + b).
        is_reverse: time is read backwards.
        products: integer or float.
    """

    index: int
    w: Floats
    r: Floats
    input_bias: Floats
    state_bias: Floats
    is_linear_first: bool
    is_reverse: bool
    products: Products

    @property
    def hidden(self) -> int:
        """H."""
        return len(self.r)

    def project(self, draft: Draft, x: str) -> list[str]:
        """Append X W + b of all steps; return z and r's columns (T, N, 2H), and n's (T, N, H)."""
        name = f"w_{self.index}"
        product = self.products.multiply(draft, x, self.w, bias=self.input_bias, name=name)
        return draft.split(product, [2 * self.hidden, self.hidden], axis=2)

    def advance(self, draft: Draft, rows: list[str], state: str) -> str:
        """Append H' = n + z (H - n) and return its name; rows are (N, ...) or (1, N, ...)."""
        make = self._linear_first if self.is_linear_first else self._reset_first
        update, before_tanh = make(draft, rows, state)
        candidate = draft.add("Tanh", before_tanh)
        kept = draft.add("Mul", update, draft.add("Sub", state, candidate))
        return draft.add("Add", candidate, kept)

    def _linear_first(self, draft: Draft, rows: list[str], state: str) -> tuple[str, str]:
        """Return z and X W + r (H R + b)."""
        name = f"r_{self.index}"
        product = self.products.multiply(draft, state, self.r, bias=self.state_bias, name=name)
        gates, inner = draft.split(product, [2 * self.hidden, self.hidden], axis=2)
        update, reset = self._gates(draft, rows[0], gates)
        return update, draft.add("Add", rows[1], draft.add("Mul", reset, inner))

    def _reset_first(self, draft: Draft, rows: list[str], state: str) -> tuple[str, str]:
        """Return z and X W + b + (r H) R."""
        of_gates, of_candidate = np.split(self.r, [2 * self.hidden], axis=1)
        gates = self.products.multiply(draft, state, of_gates, name=f"r_gates_{self.index}")
        update, reset = self._gates(draft, rows[0], gates)
        left = draft.add("Mul", reset, state)
        inner = self.products.multiply(draft, left, of_candidate, name=f"r_candidate_{self.index}")
        return update, draft.add("Add", rows[1], inner)

    def _gates(self, draft: Draft, row: str, product: str) -> list[str]:
        """Return z and r."""
        both = draft.add("Sigmoid", draft.add("Add", row, product))
        return draft.split(both, [self.hidden, self.hidden], axis=2)


def _read_direction(layer: Layer, index: int, products: Products) -> _Direction:
    h = layer.hidden
    bias = np.zeros(6 * h, np.float32) if layer.b is None else layer.b[index]
    of_input, of_state = np.split(bias, 2)
    is_linear_first = bool(layer.attributes.get("linear_before_reset", 0))
    if not is_linear_first:
        of_input, of_state = of_input + of_state, np.zeros_like(of_state)
    return _Direction(
        index,
        layer.w[index].T,
        layer.r[index].T,
        of_input,
        of_state,
        is_linear_first,
        is_reverse=index == 1 or layer.direction == "reverse",
        products=products,
    )


def _first_states(draft: Draft, node: NodeProto, layer: Layer) -> list[str]:
    """Return each direction's first state (1, N, H)."""
    given = node.input[5] if len(node.input) > 5 else ""
    if given and layer.directions == 1:
        return [given]
    if given:
        return draft.split(given, [1] * layer.directions, axis=0)
    one = draft.constant(np.array([1]), "one")
    batch = draft.add("Gather", draft.add("Shape", node.input[0]), one, axis=0)
    hidden = draft.constant(np.array([layer.hidden]), "hidden")
    shape = draft.add("Concat", one, batch, hidden, axis=0)
    return [draft.add("ConstantOfShape", shape)] * layer.directions


def _write_step(
    draft: Draft, direction: _Direction, *, rows: list[str], state: str
) -> tuple[str, str]:
    """Append the only step. Return Y (1, 1, N, H) and the state after it (1, N, H)."""
    after = direction.advance(draft, rows, state)
    shape = draft.constant(np.array([1, 1, -1, direction.hidden]), "shape_of_y")
    return draft.add("Reshape", after, shape), after


def _write_scan(
    draft: Draft, direction: _Direction, *, rows: list[str], state: str
) -> tuple[str, str]:
    """Append a Scan. Return Y (T, 1, N, H) and the state after the last step (1, N, H).

    Its constants stand in its own body: 5 % faster than outside, and from two graphs further out
    ONNX Runtime 1.32 does not pack weights ahead of time (half the speed).
    """
    body = Draft(f"{draft.prefix}_body_{direction.index}", draft.opset)
    before, *at_time = (f"{body.prefix}_{name}" for name in ("state", "gates", "candidate"))
    after = direction.advance(body, at_time, before)
    # A body that hands the same value back twice gives wrong numbers in ONNX Runtime 1.32.
    copy = body.add("Identity", after)
    graph = body.graph({before: 3} | dict.fromkeys(at_time, 2), [after, copy])
    last, y = draft.add_many(
        "Scan",
        state,
        *rows,
        outputs=2,
        body=graph,
        num_scan_inputs=len(rows),
        scan_input_directions=[int(direction.is_reverse)] * len(rows),
        scan_output_directions=[int(direction.is_reverse)],
    )
    return y, last
