"""Take one unit of every family out on trial: what does not come out right stays whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from aigc_compress.engines.torch import flat_tensors
from aigc_compress.errors import first_line

from .marks import Fork
from .sizes import Attribute, attributes_of, read_size
from .surgery import mask, remove
from .tracing import Dependencies, Family, Unit, export_program, level_groups, trace

__all__ = ["Prunable", "find_units"]

TOLERANCE = 1e-4  # of the largest output; sums in another order differ by rounding


@dataclass(frozen=True)
class Prunable:
    """A module's families that can be pruned, proven on real inputs.

    Attributes:
        module: as it was traced.
        dependencies: what the trace found.
        families: those that can be pruned.
        follows: sizes that the module's code reads, each with the number of its site.
        kept: why the others stay, by parameter.
    """

    module: nn.Module
    dependencies: Dependencies
    families: tuple[Family, ...]
    follows: dict[Attribute, int]
    kept: dict[str, str]

    @property
    def reach(self) -> int:
        """Return how many slots could go, if every family kept one unit."""
        return sum((len(each.units) - 1) * len(each.units[0].slots) for each in self.families)

    def without(self, units: Sequence[Unit]) -> nn.Module:
        """Return a copy of the module without these units."""
        return remove(self.module, units, self.dependencies, self.follows)


def find_units(module: nn.Module, inputs: Sequence[torch.Tensor]) -> Prunable:
    """Return the units of a module that can be taken out.

    Where an operator spreads channels over several axes (a view of attention's heads), the axis
    is kept that leaves the most to take out.

    Args:
        module: in evaluation mode.
        inputs: arguments of its forward; a batch of 2 or more tells stretched axes from others.

    Raises:
        PassError: torch.export cannot follow the module.
    """
    program = export_program(module, inputs)
    choices: dict[Fork, int] = {}
    best = _tried(module, inputs, trace(program, choices))
    for fork, axes in best.dependencies.registry.forks.items():
        for axis in axes[1:]:
            other = _tried(module, inputs, trace(program, {**choices, fork: axis}))
            if other.reach > best.reach:
                best, choices = other, {**choices, fork: axis}
    return best


def _tried(
    module: nn.Module, inputs: Sequence[torch.Tensor], dependencies: Dependencies
) -> Prunable:
    """Compare the module without a unit with the module in which that unit is zero."""
    follows: dict[Attribute, int] = {}
    kept = dict(dependencies.kept)
    good: list[Family] = []
    for group in level_groups(dependencies.families):
        units = [family.units[0] for family in group]
        fault = "its only unit" if min(len(family.units) for family in group) < 2 else None
        if fault is None:
            fault = _fault(module, inputs, dependencies, units, follows)
        if fault is None:
            good += group
        else:
            kept |= {family.name: fault for family in group}
    return Prunable(module, dependencies, tuple(good), follows, kept)


def _fault(
    module: nn.Module,
    inputs: Sequence[torch.Tensor],
    dependencies: Dependencies,
    units: list[Unit],
    follows: dict[Attribute, int],
) -> str | None:
    """Return what goes wrong without these units; sizes that mend it are added to `follows`."""
    wanted = _outputs(mask(module, units), inputs)
    removed = {unit.root for unit in units}
    fitted = dependencies.fitted(inputs, removed)
    fault = None
    for extra in _attempts(module, dependencies, removed):
        try:
            found = _outputs(remove(module, units, dependencies, {**follows, **extra}), fitted)
        except Exception as error:  # the module's own code meets a size that it did not expect
            fault = fault or first_line(error)
            continue
        if _are_close(wanted, found):
            follows |= extra
            return None
        fault = fault or "the numbers differ once a unit is gone"
    return f"{fault} (a size written in the code, perhaps)" if fault else None


def _attempts(
    module: nn.Module, dependencies: Dependencies, removed: set[int]
) -> Iterator[dict[Attribute, int]]:
    """Yield sizes to follow: none, one, then all that equal the length of an axis that shrinks."""
    yield {}
    found: dict[Attribute, int] = {}
    for number, site in enumerate(dependencies.sites):
        if len(dependencies.left_of(site.ids, removed)) == site.size:
            continue
        for path in _owners(site.module):
            for attribute in attributes_of(module, path):
                if read_size(module, attribute) == site.size:
                    found.setdefault(attribute, number)
    for attribute, number in found.items():
        yield {attribute: number}
    if len(found) > 1:
        yield found


def _owners(path: str) -> Iterator[str]:
    """Yield a module's path and those of the modules around it."""
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


@torch.no_grad()
def _outputs(module: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return flat_tensors(module(*inputs))


def _are_close(wanted: list[torch.Tensor], found: list[torch.Tensor]) -> bool:
    """Compare the outputs that kept their shape; a state got shorter."""
    pairs = [(a, b) for a, b in zip(wanted, found, strict=True) if a.shape == b.shape]
    return bool(pairs) and all(
        float((a - b).abs().max()) <= TOLERANCE * max(1.0, float(a.abs().max())) for a, b in pairs
    )
