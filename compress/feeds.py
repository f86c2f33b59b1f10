"""Feeds for any model without data: from rules like `z=normal(0,1)`, or seeded noise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .artifact import TensorSpec
from .errors import FeedError, UsageError, unknown_name
from .task import Feeds

__all__ = ["FeedRules", "parse_rules"]

RULE = re.compile(r"^(?P<name>[^=]+)=(?P<kind>[a-z]+)\((?P<arguments>[^()]*)\)$")
Generator = np.random.Generator
Draw = Callable[[Generator, tuple[int, ...], list[float]], NDArray[Any]]
DRAWS: Mapping[str, tuple[int, Draw]] = {
    "constant": (1, lambda _rng, shape, a: np.full(shape, a[0])),
    "normal": (2, lambda rng, shape, a: rng.normal(a[0], a[1], shape)),
    "randint": (2, lambda rng, shape, a: rng.integers(int(a[0]), int(a[1]), shape)),
    "uniform": (2, lambda rng, shape, a: rng.uniform(a[0], a[1], shape)),
}


@dataclass(frozen=True)
class FeedRules:
    """How to make feeds without data.

    Attributes:
        draws: by input name, the kind of noise and its arguments; other inputs get normal(0,1),
            or zeros where they are whole numbers or booleans.
        sizes: sizes of dynamic axes by axis name; other axes get 1.
        shapes: whole shapes by input name.
    """

    draws: Mapping[str, tuple[str, tuple[float, ...]]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def make(self, inputs: Sequence[TensorSpec], *, seed: int, batch: int = 1) -> Feeds:
        """Return one set of feeds; `batch` is the size of dynamic first axes.

        Raises:
            UsageError: a rule or shape names an input or axis that the model does not have.
        """
        names = [spec.name for spec in inputs]
        for name in (*self.draws, *self.shapes):
            if name not in names:
                raise unknown_name("input", name, names)
        axes = {axis for spec in inputs for axis in spec.shape if isinstance(axis, str)}
        for axis in self.sizes:
            if axis not in axes and axis not in names:
                raise unknown_name("dynamic axis", axis, axes)
        rng = np.random.default_rng(seed)
        first_axes = {spec.shape[0] for spec in inputs if spec.shape}
        sizes = {**{axis: batch for axis in first_axes if isinstance(axis, str)}, **self.sizes}
        return {spec.name: self._draw(spec, rng, sizes) for spec in inputs}

    def _draw(self, spec: TensorSpec, rng: Generator, sizes: Mapping[str, int]) -> NDArray[Any]:
        given = self.shapes.get(spec.name)
        if given is None and spec.name in self.sizes:  # `n=5`, the whole shape of a vector
            given = (self.sizes[spec.name],)
        shape = given or tuple(
            axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in spec.shape
        )
        is_float = spec.dtype.startswith("float")
        default = ("normal", (0.0, 1.0)) if is_float else ("constant", (0.0,))
        kind, arguments = self.draws.get(spec.name, default)
        try:
            with np.errstate(invalid="raise"):  # NaN or 1e30 as a whole number
                return np.asarray(DRAWS[kind][1](rng, shape, list(arguments))).astype(spec.dtype)
        except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
            raise FeedError(f"Cannot make a feed for {spec.name} ({spec.dtype}): {error}") from None


def parse_rules(feeds: Sequence[str], shapes: Sequence[str]) -> FeedRules:
    """Parse `--feed NAME=KIND(A,B)` and `--shape NAME=1,3,64,64` (or AXIS=64).

    Raises:
        UsageError: a text does not parse; the message shows a right one.
    """
    draws: dict[str, tuple[str, tuple[float, ...]]] = {}
    for text in feeds:
        match = RULE.match(text.replace(" ", ""))
        if match is None:
            raise UsageError(f"--feed {text!r} must look like 'z=normal(0,1)'.")
        kind = match["kind"]
        if kind not in DRAWS:
            raise unknown_name("kind of feed", kind, DRAWS)
        draws[match["name"]] = (kind, _numbers(match["arguments"], DRAWS[kind][0], text))
    sizes: dict[str, int] = {}
    whole: dict[str, tuple[int, ...]] = {}
    for text in shapes:
        name, _, values = text.partition("=")
        numbers = tuple(int(part) for part in values.split(",") if part.strip().isdecimal())
        if not name or not numbers or len(numbers) != len(values.split(",")) or min(numbers) < 1:
            raise UsageError(f"--shape {text!r} must look like 'x=1,3,64,64' or 'height=64'.")
        if len(numbers) == 1:
            sizes[name] = numbers[0]
        else:
            whole[name] = numbers
    return FeedRules(draws, sizes, whole)


def _numbers(text: str, count: int, rule: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise UsageError(f"--feed {rule!r} needs {count} number(s) in the brackets.")
    return numbers
