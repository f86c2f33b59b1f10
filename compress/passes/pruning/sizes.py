"""The sizes that modules hold beside their parameters, such as `in_channels`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = [
    "Attribute",
    "attributes_of",
    "changed_sizes",
    "fit_sizes",
    "own_sizes",
    "put_tensor",
    "read_size",
    "tensors_of",
    "write_size",
]


@dataclass(frozen=True)
class Attribute:
    """Where a size stands: a module's path, an attribute, and a place where it is a tuple."""

    module: str
    name: str
    place: int | None = None


def read_size(module: nn.Module, attribute: Attribute) -> int:
    """Return a size."""
    value = getattr(module.get_submodule(attribute.module), attribute.name)
    return int(value if attribute.place is None else value[attribute.place])


def write_size(module: nn.Module, attribute: Attribute, size: int) -> None:
    """Set a size."""
    part, value = module.get_submodule(attribute.module), size
    if attribute.place is not None:
        sizes = list(getattr(part, attribute.name))
        sizes[attribute.place] = size
        value = tuple(sizes)  # type: ignore[assignment]
    setattr(part, attribute.name, value)


def changed_sizes(before: nn.Module, after: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the plain attributes of submodules that differ, by path: what pruning set."""
    others = dict(after.named_modules())
    changed: dict[str, dict[str, Any]] = {}
    for path, part in before.named_modules():
        old, new = _plain(part), _plain(others[path])
        differing = {name: value for name, value in new.items() if old.get(name) != value}
        if differing:
            changed[path] = differing
    return changed


def fit_sizes(
    module: nn.Module, sizes: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any]
) -> None:
    """Give a dense module the sizes of a pruned one, so that its weights can be loaded.

    Args:
        module: as its config builds it; changed in place.
        sizes: from `changed_sizes`.
        state: the pruned module's tensors by name.

    Raises:
        ValueError: the module has no such part or attribute, or a tensor is of another kind.
    """
    parts = dict(module.named_modules())
    for path, attributes in sizes.items():
        for name, value in attributes.items():
            if path not in parts or name not in _plain(parts[path]):
                raise ValueError(f"the model has no size {path}.{name}")
            if not _is_plain(value):
                raise ValueError(f"{path}.{name} is {value!r}, no size")
            setattr(parts[path], name, tuple(value) if isinstance(value, list) else value)
    for name, old in tensors_of(module).items():
        new = state.get(name)
        if isinstance(new, torch.Tensor) and new.shape != old.shape:
            if new.ndim != old.ndim or any(
                n > o for n, o in zip(new.shape, old.shape, strict=True)
            ):
                raise ValueError(f"{name} is {tuple(new.shape)}, the model's {tuple(old.shape)}")
            put_tensor(module, name, new.to(old.dtype))


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by every name that they have."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def put_tensor(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a tensor in the place of another, under every name that the other has."""
    names = tensors_of(module)
    old = names[name]
    new: Any = value.detach().clone()
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    for each in [other for other, tensor in names.items() if tensor is old]:
        path, _, attribute = each.rpartition(".")
        setattr(module.get_submodule(path), attribute, new)


def _plain(module: nn.Module) -> dict[str, Any]:
    """Return the sizes among a module's attributes: integers, and rows of them."""
    return {
        name: list(value) if isinstance(value, (tuple, list)) else value
        for name, value in vars(module).items()
        if not name.startswith("_") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(isinstance(each, int) for each in value)
    return isinstance(value, int) and not isinstance(value, bool)


def attributes_of(module: nn.Module, path: str) -> Iterator[Attribute]:
    """Yield the sizes that a module of some other kind holds: its numbers and tuples of them."""
    part = module.get_submodule(path)
    if _kind(part) is not None:
        return
    for name, value in _plain(part).items():
        if isinstance(value, int):
            yield Attribute(path, name)
        else:
            yield from (Attribute(path, name, place) for place in range(len(value)))


def own_sizes(module: nn.Module) -> dict[str, int]:
    """Return the sizes that a known kind of module must hold for the parameters that it has."""
    kind = _kind(module)
    return kind(module) if kind is not None else {}


def _kind(module: nn.Module) -> Callable[[Any], dict[str, int]] | None:
    return next((sizes for types, sizes in KINDS if isinstance(module, types)), None)


def _conv(module: Any) -> dict[str, int]:
    first, second = module.weight.shape[:2]
    groups = module.groups
    if groups == module.in_channels > 1:  # depthwise: as many groups as channels
        if isinstance(module, _ConvTransposeNd):
            groups = first
        else:
            groups = first // (module.out_channels // module.in_channels)
    if isinstance(module, _ConvTransposeNd):
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


def _group_norm(module: Any) -> dict[str, int]:
    if module.weight is None:
        return {}
    channels = len(module.weight)
    groups = module.num_groups * channels // module.num_channels
    return {"num_channels": channels, "num_groups": groups}


def _norm(module: Any) -> dict[str, int]:
    known = module.weight if module.weight is not None else module.running_mean
    return {} if known is None else {"num_features": len(known)}


def _recurrent(module: Any) -> dict[str, int]:
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    if module.proj_size:
        return {}
    sizes = {"input_size": module.weight_ih_l0.shape[1]}
    return {**sizes, "hidden_size": module.weight_hh_l0.shape[1]}


KINDS: tuple[tuple[Any, Callable[[Any], dict[str, int]]], ...] = (
    (_ConvNd, _conv),
    (
        nn.Linear,
        lambda m: {"in_features": m.weight.shape[1], "out_features": m.weight.shape[0]},
    ),
    (nn.GroupNorm, _group_norm),
    (_NormBase, _norm),
    (nn.Embedding, lambda m: {"embedding_dim": m.weight.shape[1]}),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    (nn.PReLU, lambda m: {"num_parameters": len(m.weight)}),
)
