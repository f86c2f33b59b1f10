"""The table of model kinds: how a checkpoint's name and config become a module again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from torch import nn

from aigc_compress.errors import InputFileError, describe_faults, unknown_name
from aigc_compress.passes.pruning.sizes import fit_sizes

from . import EDGES, SHIPPED
from .cnn import CnnConfig, ResidualNetwork
from .gan import Discriminator, DiscriminatorConfig, GanConfig, Generator
from .own import build_own, is_own
from .rnn import CharacterModel, RnnConfig

__all__ = ["KINDS", "Kind", "build_module", "weights_path"]


class Kind(NamedTuple):
    """One kind of model: its config class and the module built from such a config."""

    config: type[BaseModel]
    module: Callable[[Any], nn.Module]


KINDS: Mapping[str, Kind] = {
    "cnn": Kind(CnnConfig, ResidualNetwork),
    "gan": Kind(GanConfig, Generator),
    "gan-discriminator": Kind(DiscriminatorConfig, Discriminator),
    "rnn": Kind(RnnConfig, CharacterModel),
}


def build_module(
    name: str,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
) -> nn.Module:
    """Build the module of kind `name` from its config, load its weights, switch to evaluation.

    Args:
        name: a key of KINDS.
        config: of the kind.
        state: tensors by name; where `sizes` are given they may be smaller than the config says.
        sizes: attributes of submodules that pruning set, by the submodule's path.

    Raises:
        UsageError: there is no such kind.
        InputFileError: the config or the weights do not fit the kind.
    """
    if name not in KINDS and not is_own(name):
        raise unknown_name("model", name, KINDS)
    try:
        module = _new(name, config)
        if sizes:
            fit_sizes(module, sizes, state)
        module.load_state_dict(dict(state))
    except (ValidationError, RuntimeError, TypeError, AttributeError, ValueError) as error:
        raise InputFileError(
            f"The file does not hold a {name} model: {describe_faults(error)}"
        ) from error
    return module.eval()


def _new(name: str, config: Mapping[str, Any]) -> nn.Module:
    if is_own(name):
        return build_own(name, dict(config))
    kind = KINDS[name]
    return kind.module(kind.config.model_validate(config))


def weights_path(name: str) -> Path:
    """Return the path of a shipped model: a reference's `.pt`, a recipe's `.onnx`."""
    if name not in SHIPPED:
        raise unknown_name("shipped model", name, SHIPPED)
    suffix = ".onnx" if name in EDGES else ".pt"
    return Path(__file__).parent / "weights" / (name + suffix)
