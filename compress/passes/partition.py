"""Which operators are worth integers: the cheapest split of a graph, as a minimum cut.

Every operator has a time on floats and, where it has an integer kernel, a time on integers. A
tensor that goes from floats to integers, or back, costs its border (QuantizeLinear,
DequantizeLinear), once however many operators read it. The time of a split is a sum over operators
and over crossing tensors, so the cheapest split of all is a minimum s-t cut and is found exactly
(Greig, Porteous & Seheult 1989, "Exact maximum a posteriori estimation for binary images"; the
shared border of a tensor is the auxiliary node of Kohli, Kumar & Torr 2007, "P3 & Beyond").

Harm to quality can be charged as milliseconds: that of an operator's rounded weights on top of its
integer time, that of a rounded activation once, where an integer operator makes it or reads it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

__all__ = ["Border", "Operator", "Split", "cheapest_split"]

# SciPy's flows are int32. All on floats is a split too, so no flow is larger than its time.
TICKS = 2**28
FOREVER = 2**29


@dataclass(frozen=True)
class Operator:
    """One operator: its name, and milliseconds in both forms; integer is infinite without a kernel.

    Attributes:
        name: of the node.
        inputs: names of the activations that it reads.
        outputs: names of the tensors that it makes.
        float_ms: time on floats.
        integer_ms: time on integers, borders not counted.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    float_ms: float
    integer_ms: float = math.inf


@dataclass(frozen=True)
class Border:
    """Milliseconds that a tensor costs.

    Attributes:
        quantize_ms: where floats make it and integers read it.
        dequantize_ms: where integers make it and floats read it.
        rounded_ms: where integers make it or read it, charged for the harm of rounding it.
    """

    quantize_ms: float
    dequantize_ms: float
    rounded_ms: float = 0.0


@dataclass(frozen=True)
class Split:
    """The operators that run on integers, and the time of the whole graph so split, in ms."""

    integer: frozenset[str]
    milliseconds: float


def cheapest_split(
    operators: Sequence[Operator], borders: Mapping[str, Border], outputs: Iterable[str]
) -> Split:
    """Return the split that takes the least time.

    Args:
        operators: in any order; a tensor that none of them makes is an input of the graph, a float.
        borders: by tensor; a tensor without one crosses for nothing.
        outputs: tensors that leave the graph, as floats.
    """
    flow = _Flow()
    for operator in operators:
        flow.add(_Flow.SOURCE, operator.name, operator.integer_ms)
        flow.add(operator.name, _Flow.SINK, operator.float_ms)
    makers = {tensor: operator.name for operator in operators for tensor in operator.outputs}
    readers: dict[str, list[str]] = {tensor: [] for tensor in makers}
    readers |= {tensor: [_Flow.SOURCE] for tensor in outputs}
    for operator in operators:
        for tensor in operator.inputs:
            readers.setdefault(tensor, []).append(operator.name)
    for tensor, names in readers.items():
        border = borders.get(tensor, Border(0.0, 0.0))
        flow.add_border(tensor, makers.get(tensor, _Flow.SOURCE), names, border)
    on_floats, total_ms = flow.cut(sum(operator.float_ms for operator in operators))
    return Split(frozenset(o.name for o in operators if o.name not in on_floats), total_ms)


class _Flow:
    """A flow network; what stays with the source runs on floats, the rest on integers."""

    SOURCE, SINK = "\0source", "\0sink"

    def __init__(self) -> None:
        self._index = {self.SOURCE: 0, self.SINK: 1}
        self._edges: dict[tuple[int, int], float] = {}

    def add(self, start: str, end: str, milliseconds: float) -> None:
        """Let the cut cost this much where `start` is on floats and `end` on integers."""
        key = (self._number(start), self._number(end))
        if key[0] != key[1]:
            self._edges[key] = self._edges.get(key, 0.0) + milliseconds

    def add_border(self, tensor: str, maker: str, readers: Sequence[str], border: Border) -> None:
        """Charge a tensor once per direction in which it crosses, and once where it is rounded."""
        into, back = f"\0quantized {tensor}", f"\0dequantized {tensor}"
        rounded = f"\0rounded {tensor}"
        self.add(maker, into, border.quantize_ms)
        self.add(back, maker, border.dequantize_ms)
        for reader in readers:
            self.add(into, reader, math.inf)
            self.add(reader, back, math.inf)
        if border.rounded_ms:
            self.add(self.SOURCE, rounded, border.rounded_ms)
            for member in (maker, *readers):
                self.add(rounded, member, math.inf)

    def cut(self, most_ms: float) -> tuple[set[str], float]:
        """Return the names that stay on floats, and the cost of the minimum cut in ms.

        Args:
            most_ms: a cost that some cut does not exceed.
        """
        if most_ms <= 0:
            return set(self._index), 0.0
        size, ticks_per_ms = len(self._index), TICKS / most_ms
        ticks = np.minimum([ms * ticks_per_ms for ms in self._edges.values()], FOREVER)
        ends = np.array([*self._edges]).T
        capacity = csr_array((np.rint(ticks).astype(np.int32), ends), shape=(size, size))
        found = maximum_flow(capacity, 0, 1)
        reached = _reachable(csr_array(capacity - found.flow))
        floats = {name for name, index in self._index.items() if index in reached}
        return floats, float(found.flow_value) / ticks_per_ms

    def _number(self, name: str) -> int:
        return self._index.setdefault(name, len(self._index))


def _reachable(residual: csr_array) -> set[int]:
    """Return the nodes that the source still reaches through edges with capacity left."""
    reached, queue = {0}, deque([0])
    while queue:
        node = queue.popleft()
        row = slice(residual.indptr[node], residual.indptr[node + 1])
        for end, capacity in zip(residual.indices[row], residual.data[row], strict=True):
            if capacity > 0 and end not in reached:
                reached.add(int(end))
                queue.append(int(end))
    return reached
