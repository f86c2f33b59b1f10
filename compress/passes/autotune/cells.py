"""LSTM and GRU cells written as linear layers, so that their products can be quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["cells_as_linears"]


def cells_as_linears() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions of `nn.LSTMCell` and `nn.GRUCell` by operator."""
    aten = torch.ops.aten
    return {aten.lstm_cell.default: _lstm_cell, aten.gru_cell.default: _gru_cell}


def _lstm_cell(
    x: Tensor,
    state: Sequence[Tensor],
    w_input: Tensor,
    w_hidden: Tensor,
    b_input: Tensor | None = None,
    b_hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the next (h, c), by the equations of `torch.nn.LSTMCell`.

    Shapes: x (N, I); state (h, c), each (N, H); w_input (4H, I); w_hidden (4H, H).
    """
    hidden, cell = state
    gates = linear(x, w_input, b_input) + linear(hidden, w_hidden, b_hidden)
    keep_in, forget, update, out = gates.chunk(4, 1)
    cell = forget.sigmoid() * cell + keep_in.sigmoid() * update.tanh()
    return out.sigmoid() * cell.tanh(), cell


def _gru_cell(
    x: Tensor,
    hidden: Tensor,
    w_input: Tensor,
    w_hidden: Tensor,
    b_input: Tensor | None = None,
    b_hidden: Tensor | None = None,
) -> Tensor:
    """Return the next h, by the equations of `torch.nn.GRUCell`.

    Shapes: x (N, I); hidden (N, H); w_input (3H, I); w_hidden (3H, H).
    """
    reset_x, keep_x, new_x = linear(x, w_input, b_input).chunk(3, 1)
    reset_h, keep_h, new_h = linear(hidden, w_hidden, b_hidden).chunk(3, 1)
    reset, keep = (reset_x + reset_h).sigmoid(), (keep_x + keep_h).sigmoid()
    new = (new_x + reset * new_h).tanh()
    return new + keep * (hidden - new)
