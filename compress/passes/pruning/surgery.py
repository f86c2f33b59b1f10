"""Take units out of a module: slice its parameters, and let the sizes that it holds follow."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from .sizes import Attribute, own_sizes, put_tensor, tensors_of, write_size
from .tracing import Dependencies, Unit

__all__ = ["mask", "remove"]


def remove(
    module: nn.Module,
    units: Iterable[Unit],
    dependencies: Dependencies,
    follows: Mapping[Attribute, int],
) -> nn.Module:
    """Return a copy without these units.

    Args:
        module: as it was traced.
        units: to take out.
        dependencies: what the trace found.
        follows: sizes that the module's own code reads, with the number of the site that they are.
    """
    units = list(units)
    smaller = copy.deepcopy(module)
    for (tensor, axis), gone in _indices(units).items():
        old = tensors_of(smaller)[tensor]
        left = [index for index in range(old.shape[axis]) if index not in gone]
        put_tensor(smaller, tensor, old.index_select(axis, torch.tensor(left)))
    for path, part in smaller.named_modules():
        for name, value in own_sizes(part).items():
            write_size(smaller, Attribute(path, name), value)
    removed = {each.root for each in units}
    for attribute, number in follows.items():
        site = dependencies.sites[number]
        write_size(smaller, attribute, len(dependencies.left_of(site.ids, removed)))
    return smaller


def mask(module: nn.Module, units: Iterable[Unit]) -> nn.Module:
    """Return a copy of the same shape in which these units are zero."""
    masked = copy.deepcopy(module)
    names = tensors_of(masked)
    with torch.no_grad():
        for (tensor, axis), gone in _indices(list(units)).items():
            names[tensor].index_fill_(axis, torch.tensor(sorted(gone)), 0)
    return masked


def _indices(units: Sequence[Unit]) -> dict[tuple[str, int], set[int]]:
    gone: dict[tuple[str, int], set[int]] = {}
    for unit in units:
        for slot in unit.slots:
            gone.setdefault((slot.tensor, slot.axis), set()).add(slot.index)
    return gone
