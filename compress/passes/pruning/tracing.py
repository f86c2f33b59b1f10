"""Find out which units a module has: export it, and let every operator say what it ties."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aigc_compress.errors import PassError, first_line

from ..base import quiet_library
from .calls import Call, Weight
from .marks import Fork, Ids, Marks, Registry, Slot
from .rules import apply_rule

__all__ = [
    "Dependencies",
    "Family",
    "Site",
    "State",
    "Unit",
    "export_program",
    "level_groups",
    "trace",
]


@dataclass(frozen=True)
class Unit:
    """What can only be removed together: a channel, a head, a recurrent layer's hidden unit.

    Attributes:
        root: the id that stands for it.
        slots: every index of a parameter or buffer that goes with it.
    """

    root: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Family:
    """Units with slots in the same places, of which any can go but the last.

    Attributes:
        name: the first weight that makes them.
        units: in the order of their indices.
        level: families of the same number must keep equally many units; None: none must.
    """

    name: str
    units: tuple[Unit, ...]
    level: int | None = None

    @property
    def places(self) -> Counter[tuple[str, int]]:
        """Return how many slots a unit has, by parameter and axis."""
        return Counter((each.tensor, each.axis) for each in self.units[0].slots)


@dataclass(frozen=True)
class Site:
    """A size that may be written in a module: the length of an axis, and the ids along it."""

    module: str
    size: int
    ids: Ids


@dataclass(frozen=True)
class State:
    """An input of the model that is the first state (layers x directions, batch, units).

    Attributes:
        position: of the input.
        rows: the ids of each layer's and direction's units.
    """

    position: int
    rows: tuple[Ids, ...]


@dataclass(frozen=True)
class Dependencies:
    """What `trace` found.

    Attributes:
        families: of units.
        sites: sizes that may be written in modules.
        states: inputs that get shorter with the units of a recurrent layer.
        kept: why indices stay, by parameter and axis.
        registry: of ids.
    """

    families: tuple[Family, ...]
    sites: tuple[Site, ...]
    states: tuple[State, ...]
    kept: dict[str, str]
    registry: Registry

    def left_of(self, ids: Ids, removed: set[int]) -> list[int]:
        """Return the positions along an axis that stay once the units of these roots are gone."""
        roots = [self.registry.root(int(each)) for each in ids]
        return [position for position, root in enumerate(roots) if root not in removed]

    def fitted(self, inputs: Sequence[torch.Tensor], removed: set[int]) -> list[torch.Tensor]:
        """Return the model's inputs without the states of these units."""
        fitted = list(inputs)
        for state in self.states:
            rows = [torch.tensor(self.left_of(row, removed)) for row in state.rows]
            whole = fitted[state.position]
            parts = [whole[i].index_select(-1, row) for i, row in enumerate(rows)]
            fitted[state.position] = torch.stack(parts)
        return fitted


def export_program(module: nn.Module, inputs: Sequence[torch.Tensor]) -> Any:
    """Return the module as a program of operators.

    Args:
        module: in evaluation mode.
        inputs: arguments of its forward; a batch of 2 or more tells stretched axes from others.

    Raises:
        PassError: torch.export cannot follow the module.
    """
    try:
        with quiet_library(), torch.no_grad():
            return torch.export.export(module, tuple(inputs), strict=False)
    except Exception as error:  # torch.export raises whatever the module runs into
        raise PassError(
            f"torch.export cannot follow this module, so its channels are not known:"
            f" {first_line(error)}"
        ) from error


def trace(program: Any, choices: Mapping[Fork, int]) -> Dependencies:
    """Return the units of a program, with these choices where channels can lie on several axes."""
    return _Walk(program, choices).dependencies()


def level_groups(families: Sequence[Family]) -> list[list[Family]]:
    """Return families by what must stay equally wide."""
    levels: dict[int, list[Family]] = {}
    groups = []
    for family in families:
        if family.level is None:
            groups.append([family])
        else:
            if family.level not in levels:
                groups.append(levels.setdefault(family.level, []))
            levels[family.level].append(family)
    return groups


class _Walk:
    """A walk over the nodes of an exported program, which are in the order of their running."""

    def __init__(self, program: Any, choices: Mapping[Fork, int]) -> None:
        state = {**program.state_dict, **program.constants}
        shapes = {n: tuple(v.shape) for n, v in state.items() if isinstance(v, torch.Tensor)}
        self._registry = Registry(shapes, choices)
        signature = program.graph_signature
        self._weights = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._constants = set(signature.inputs_to_lifted_tensor_constants.values())
        self._values: dict[Any, Any] = {}
        self._sites: list[Site] = []
        self._states: list[State] = []
        self._inputs = list(signature.user_inputs)
        self._nodes = program.graph.nodes

    def dependencies(self) -> Dependencies:
        """Walk, and sort what was found."""
        for node in self._nodes:
            if node.op == "placeholder":
                self._values[node] = self._placed(node)
            elif node.op == "call_function":
                self._values[node] = self._called(node)
            elif node.op == "output":
                self._end(node)
        registry = self._registry
        for name in self._constants:
            registry.fix_tensor(name, "it is a constant of the program")
        kept = {}
        for tensor, axis in registry.axes():
            reason = registry.reason(tensor, axis)
            if reason is not None and registry.shapes[tensor][axis] > 1:
                kept[f"{tensor}, axis {axis}"] = reason
        return Dependencies(
            _families(registry), tuple(self._sites), tuple(self._states), kept, registry
        )

    def _placed(self, node: Any) -> Any:
        if node.name in self._weights:
            return Weight(self._weights[node.name], self._registry)
        value = node.meta.get("val")
        return Marks(tuple(value.shape)) if isinstance(value, torch.Tensor) else value

    def _called(self, node: Any) -> Any:
        if node.target is operator.getitem:
            return self._read(node.args[0])[node.args[1]]
        found = node.meta.get("val")
        results = found if isinstance(found, (list, tuple)) else [found]
        shapes = tuple(tuple(e.shape) for e in results if isinstance(e, torch.Tensor))
        schema = getattr(node.target, "_schema", None)
        names = [each.name for each in schema.arguments] if schema else map(str, range(99))
        arguments = dict(zip(names, map(self._read, node.args), strict=False))
        arguments |= {name: self._read(value) for name, value in node.kwargs.items()}
        tags = getattr(node.target, "tags", ())
        call = Call(
            str(node.target).removeprefix("aten.").partition(".")[0],
            node.target,
            arguments,
            shapes,
            torch.Tag.pointwise in tags,
            self._registry,
        )
        if not shapes:
            for each in call.operands:
                call.keep(each, f"{call.name} reads them")
            return None
        made = apply_rule(call)
        self._note_sites(node, call, made)
        return made if isinstance(found, (list, tuple)) else made[0]

    def _read(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return self._values[value]
        if isinstance(value, (list, tuple)):
            return [self._read(each) for each in value]
        return value

    def _note_sites(self, node: Any, call: Call, made: tuple[Marks, ...]) -> None:
        """Note lengths of marked axes, and of the zeros that a recurrent layer begins with."""
        path = _module_of(node)
        for each in made:
            if each.axis is not None and each.ids is not None:
                self._sites.append(Site(path, each.shape[each.axis], each.ids))
        if "hx" in call.arguments:
            self._note_states(node, call)

    def _note_states(self, node: Any, call: Call) -> None:
        weights = [each for each in call.operands if isinstance(each, Weight)]
        units = tuple(
            each.along(1) for each in weights if "hh" in each.name and len(each.shape) == 2
        )
        given = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
        for each in given:
            if each.name in self._inputs and units:
                self._states.append(State(self._inputs.index(each.name), units))
            elif each.op == "call_function" and not each.all_input_nodes and units:
                self._sites.append(Site(_module_of(each), len(units[0]), units[0]))

    def _end(self, node: Any) -> None:
        for each in node.args[0]:
            if not isinstance(each, torch.fx.Node) or _is_state(each):
                continue
            value = self._values[each]
            if isinstance(value, Marks) and value.ids is not None:
                self._registry.fix(value.ids, "it makes the model's output")
            elif isinstance(value, Weight):
                self._registry.fix_tensor(value.name, "it is the model's output")


def _is_state(node: Any) -> bool:
    """Whether an output is the last state of a recurrent layer, whose length may change."""
    return (
        node.target is operator.getitem
        and node.args[1] > 0
        and "hx" in [a.name for a in node.args[0].target._schema.arguments]
    )


def _module_of(node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""


def _families(registry: Registry) -> tuple[Family, ...]:
    levels = {key: number for number, keys in enumerate(registry.level) for key in keys}
    sorted_units: dict[frozenset[Any], list[Unit]] = {}
    for root, slots in registry.units().items():
        counts = Counter((each.tensor, each.axis) for each in slots)
        sorted_units.setdefault(frozenset(counts.items()), []).append(Unit(root, slots))
    families = []
    for units in sorted_units.values():
        places = [(each.tensor, each.axis) for each in units[0].slots]
        level = next((levels[each] for each in places if each in levels), None)
        maker = next(
            (name for name, axis in registry.makers if (name, axis) in places), places[0][0]
        )
        families.append(Family(maker, tuple(units), level))
    return tuple(families)
