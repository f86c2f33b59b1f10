"""A character language model: embedding, LSTM or GRU, linear head; state goes in and out."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

__all__ = ["CharacterModel", "RnnConfig"]


class RnnConfig(BaseModel):
    """Shape of the network and the characters that it knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alphabet: str = Field(min_length=2, description="all characters; a token is an index into it")
    cell: Literal["lstm", "gru"] = Field(default="lstm", description="kind of recurrent cell")
    layers: int = Field(default=2, ge=1, description="number of recurrent layers")
    hidden: int = Field(default=512, ge=1, description="units of a layer")
    embedding: int = Field(default=128, ge=1, description="length of a character's embedding")


class CharacterModel(nn.Module):
    """Predict the next character of every position and hand on the state.

    Shapes: tokens int64 (N, T) in [0, len(alphabet)); h (and c for LSTM) float32
    (layers, N, hidden) -> logits float32 (N, T, len(alphabet)), h_out (and c_out) like h.
    """

    def __init__(self, config: RnnConfig) -> None:
        super().__init__()
        self.config = config
        states = ("h", "c") if config.cell == "lstm" else ("h",)
        self.input_names = ("tokens", *states)
        self.output_names = ("logits", *(f"{state}_out" for state in states))
        self.embedding = nn.Embedding(len(config.alphabet), config.embedding)
        cell = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.cell = cell(config.embedding, config.hidden, config.layers, batch_first=True)
        self.head = nn.Linear(config.hidden, len(config.alphabet))

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return (logits, *state); the state is (h, c) for LSTM and (h,) for GRU."""
        hidden, after = self.features(tokens, *state)
        return self.head(hidden), *after

    def features(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what the last layer puts out (N, T, hidden), and the states after it."""
        packed = tuple(state) if self.config.cell == "lstm" else state[0]
        hidden, after = self.cell(self.embedding(tokens), packed)
        return hidden, after if isinstance(after, tuple) else (after,)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """Return the zero state of a batch, one tensor (layers, batch, hidden) per state input."""
        like = self.head.weight
        shape = (self.cell.num_layers, batch, self.cell.hidden_size)
        return tuple(like.new_zeros(shape) for _ in self.input_names[1:])
