"""A recurrent teacher that reads the text once, for all the epochs of its student."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Reader"]


class Reader:
    """What a teacher makes of every character of some streams, kept from the first reading on.

    Its weights stand still, so what it says at a place depends on the text before it alone, in
    whichever epoch a student comes by. It reads in pieces of fixed borders, so that a training that
    goes on from a checkpoint is told the same to the last bit.

    Memory: two bytes per character and number kept.
    """

    def __init__(self, teacher: Any, streams: Tensor, *, piece: int, keeps_features: bool) -> None:
        """Prepare; nothing is read yet.

        Args:
            teacher: a character model on the device that it reads on.
            streams: tokens, int64 (streams, length).
            piece: characters of each stream read at a time.
            keeps_features: keep what the last layer puts out, from which the logits follow, and
                not the logits alone, which are fewer.
        """
        self._teacher, self._streams, self._piece = teacher, streams, piece
        self._keeps_features = keeps_features
        width = teacher.head.in_features if keeps_features else teacher.head.out_features
        device = teacher.head.weight.device
        self._read = 0
        self._kept = torch.empty((*streams.shape, width), dtype=torch.float16, device=device)
        self._state = teacher.initial_state(len(streams))

    @torch.no_grad()
    def after(
        self, start: int, stop: int, precision: AbstractContextManager[None]
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits, float32 (streams, stop - start, alphabet), and features, if kept.

        Args:
            start: place of the first character.
            stop: place after the last one.
            precision: what the forward pass runs in.
        """
        with precision:
            while self._read < stop:
                self._read_on()
            kept = self._kept[:, start:stop].float()
            if not self._keeps_features:
                return kept, None
            return self._teacher.head(kept).float(), kept

    def _read_on(self) -> None:
        end = min(self._read + self._piece, self._streams.shape[1])
        tokens = self._streams[:, self._read : end].to(self._kept.device)
        features, self._state = self._teacher.features(tokens, *self._state)
        made = features if self._keeps_features else self._teacher.head(features)
        self._kept[:, self._read : end] = made.half()
        self._read = end
