"""How much a unit matters: from weights alone, from activations, or from gradients.

With w a unit's weights, g the gradients of a loss L with respect to them, and sums over all slots
of the unit:

* magnitude:  sqrt(sum w^2), as a share of the family's mean (Li et al. 2017, for whole groups)
* bn-scale:   |gamma| of its batch norms (Liu et al. 2017), as a share of the family's mean
* activation: mean |activation| of the layer that makes it, as a share of the family's mean
* taylor:     mean over batches of (sum w g)^2 (Molchanov et al. 2019)
* output:     the same with L = <v, f(x)> / |f(x)| for random signs v, which needs no labels: to
  first order the expected squared change of the outputs without the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from aigc_compress.engines.torch import flat_tensors
from aigc_compress.errors import UsageError

from ..prune import Importance
from .tracing import Family, Unit
from .trials import Prunable

__all__ = ["Loss", "importances"]

Loss = Callable[[nn.Module, int], Tensor]


def importances(
    prunable: Prunable,
    kind: Importance,
    *,
    batches: Iterable[Sequence[Tensor]] = (),
    loss: Loss | None = None,
    loss_batches: int = 16,
    seed: int = 0,
) -> dict[int, float]:
    """Return how much every unit matters, by its root; numbers of all families compare.

    Args:
        prunable: the module with its units.
        kind: see the module's text.
        batches: inputs, for `activation` and `output`.
        loss: the loss of the module on the batch of an index, for `taylor`.
        loss_batches: how many batches of the loss are taken.
        seed: of the random signs.

    Raises:
        UsageError: what this kind needs was not given, or the module has no such layers.
    """
    module, families = prunable.module, prunable.families
    if kind in ("magnitude", "bn-scale"):
        tensors = _scales(module) if kind == "bn-scale" else dict(module.named_parameters())
        return _relative(families, lambda unit: _energy(unit, tensors), kind)
    if kind == "activation":
        return _relative(families, _activations(module, families, batches), kind)
    if kind == "taylor":
        if loss is None:
            raise UsageError("Taylor importance needs a task with a training step. Use 'output'.")
        return _first_order(module, families, (loss(module, i) for i in range(loss_batches)))
    random = torch.Generator().manual_seed(seed)
    return _first_order(module, families, (_projection(module, b, random) for b in batches))


def _energy(unit: Unit, tensors: Mapping[str, Tensor]) -> float:
    """Return the norm of a unit's slots; NaN where it has none among these tensors."""
    found = [
        float(tensors[each.tensor].detach().select(each.axis, each.index).double().square().sum())
        for each in unit.slots
        if each.tensor in tensors
    ]
    return sum(found) ** 0.5 if found else float("nan")


def _scales(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of normalizations by name."""
    return {
        f"{path}.weight".lstrip("."): part.weight
        for path, part in module.named_modules()
        if isinstance(part, (nn.modules.batchnorm._NormBase, nn.GroupNorm))
        and part.weight is not None
    }


def _relative(
    families: Sequence[Family], measure: Callable[[Unit], float], kind: str
) -> dict[int, float]:
    """Return measures as shares of their family's mean, since layers differ in scale."""
    found: dict[int, float] = {}
    for family in families:
        values = torch.tensor([measure(unit) for unit in family.units], dtype=torch.float64)
        if values.isnan().any():
            raise UsageError(
                f"{kind} importance does not see the units of {family.name}. Use output."
            )
        shares = values / values.mean().clamp_min(1e-30)
        found |= {unit.root: float(share) for unit, share in zip(family.units, shares, strict=True)}
    return found


@torch.no_grad()
def _activations(
    module: nn.Module, families: Sequence[Family], batches: Iterable[Sequence[Tensor]]
) -> Callable[[Unit], float]:
    """Return what tells the mean |activation| of a unit, behind its normalization if it has one."""
    scales = _scales(module)
    watched = {
        family.name: next((name for name, _ in family.places if name in scales), family.name)
        for family in families
    }
    sums: dict[str, Tensor] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(part: nn.Module, _inputs: object, output: object) -> None:
            value = output[0] if isinstance(output, tuple) else output
            assert isinstance(value, Tensor)
            last = isinstance(part, (nn.Linear, nn.Embedding, nn.RNNBase, nn.RNNCellBase))
            axis = value.ndim - 1 if last else 1
            rest = [each for each in range(value.ndim) if each != axis]
            sums[path] = sums.get(path, torch.zeros(())) + value.abs().mean(rest)

        return hook

    paths = {each.rpartition(".")[0] for each in watched.values()}
    hooks = [module.get_submodule(each).register_forward_hook(watch(each)) for each in paths]
    try:
        for batch in batches:
            module(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    owners = {unit.root: family for family in families for unit in family.units}

    def measure(unit: Unit) -> float:
        path, _, name = watched[owners[unit.root].name].rpartition(".")
        part = module.get_submodule(path)
        if isinstance(part, nn.RNNBase) and name != f"weight_hh_l{part.num_layers - 1}":
            return float("nan")  # only the last layer's outputs are seen
        found, tensor = sums[path], watched[owners[unit.root].name]
        indices = [each.index for each in unit.slots if each.tensor == tensor]
        return float(found[indices].mean())

    return measure


def _first_order(
    module: nn.Module, families: Sequence[Family], losses: Iterable[Tensor]
) -> dict[int, float]:
    """Return the mean over losses, which are made one by one, of (sum w g)^2 of every unit."""
    was = {name: p.requires_grad for name, p in module.named_parameters()}
    parameters = dict(module.named_parameters())
    total: dict[int, float] = {}
    count = 0
    for each in parameters.values():
        each.requires_grad_(True)
    for loss in losses:
        found = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
        products = {
            name: (p.detach() * g).double()
            for (name, p), g in zip(parameters.items(), found, strict=True)
            if g is not None
        }
        sums = {
            place: _along(products[place[0]], place[1])
            for place in _places(families)
            if place[0] in products
        }
        for family in families:
            for unit in family.units:
                moved = sum(
                    float(sums[slot.tensor, slot.axis][slot.index])
                    for slot in unit.slots
                    if (slot.tensor, slot.axis) in sums
                )
                total[unit.root] = total.get(unit.root, 0.0) + moved**2
        count += 1
    for name, each in parameters.items():
        each.requires_grad_(was[name])
    if not count:
        raise UsageError("This importance needs feeds, and there are none.")
    return {root: value / count for root, value in total.items()}


def _places(families: Sequence[Family]) -> set[tuple[str, int]]:
    return {place for family in families for place in family.places}


def _along(tensor: Tensor, axis: int) -> Tensor:
    rest = [each for each in range(tensor.ndim) if each != axis]
    return tensor.sum(rest) if rest else tensor


def _projection(module: nn.Module, batch: Sequence[Tensor], random: torch.Generator) -> Tensor:
    """Return the sum over outputs of <v, f(x)> / |f(x)| with random signs v."""
    floats = [each for each in flat_tensors(module(*batch)) if each.is_floating_point()]
    signs = [torch.randint(0, 2, each.shape, generator=random).to(each) * 2 - 1 for each in floats]
    return sum(
        (
            (v * f).sum() / f.detach().norm().clamp_min(1e-12)
            for v, f in zip(signs, floats, strict=True)
        ),
        start=torch.zeros(()),
    )
