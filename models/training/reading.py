"""A recurrent teacher that reads the text once, and writes more of it, for all epochs of a student.

What the teacher writes is sequence-level distillation (Kim and Rush 2016), by sampling in place of
a beam: a student that sees all of a text's characters several times sees as many new ones.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .base import mixed_seed

__all__ = ["Reader"]


class Reader:
    """Streams of text with what a teacher expects after every character, kept once it is known.

    Its weights stand still, so what it says at a place depends on the text before it alone, in
    whichever epoch a student comes by. Streams grow by what it writes behind their end. It works in
    pieces of fixed borders and seeds, so that a training that goes on from a checkpoint is told the
    same to the last bit.

    Memory: two bytes per character and number kept.
    """

    def __init__(
        self,
        teacher: Any,
        streams: Tensor,
        *,
        piece: int,
        written: int = 0,
        keeps_features: bool = False,
        seed: int = 0,
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            teacher: a character model on the device that it works on.
            streams: tokens, int64 (streams, length).
            piece: characters of each stream that are read or written at a time.
            written: characters that the teacher adds to each stream.
            keeps_features: keep what the last layer puts out, from which the logits follow, and
                not the logits alone, which are fewer.
            seed: of what is written.
        """
        self._teacher, self._piece, self._seed = teacher, piece, seed
        self._keeps_features = keeps_features
        width = teacher.head.in_features if keeps_features else teacher.head.out_features
        device = teacher.head.weight.device
        count, self._given = streams.shape
        room = streams.new_zeros(count, written)
        self.streams = torch.cat([streams, room], 1)
        self._done = 0
        shape = (count, self._given + written, width)
        self._kept = torch.empty(shape, dtype=torch.float16, device=device)
        self._state = teacher.initial_state(count)

    @torch.no_grad()
    def after(
        self, start: int, stop: int, precision: AbstractContextManager[None]
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits, float32 (streams, stop - start, alphabet), and features, if kept.

        Once it returned, `streams` hold the characters up to `stop`, and the one after it.

        Args:
            start: place of the first character.
            stop: place after the last one.
            precision: what the forward pass runs in.
        """
        with precision:
            while self._done < stop:
                self._go_on()
            kept = self._kept[:, start:stop].float()
            if not self._keeps_features:
                return kept, None
            return self._teacher.head(kept).float(), kept

    def _go_on(self) -> None:
        """Read the next piece; behind the end of the text, write it."""
        start = self._done
        if start < self._given:
            self._read(start, min(start + self._piece, self._given))
        else:
            for place in range(start, min(start + self._piece, self.streams.shape[1])):
                self._read(place, place + 1)

    def _read(self, start: int, stop: int) -> None:
        """Read characters; where the text ends, the next one is drawn from what is expected."""
        tokens = self.streams[:, start:stop].to(self._kept.device)
        features, self._state = self._teacher.features(tokens, *self._state)
        logits = self._teacher.head(features)
        self._kept[:, start:stop] = (features if self._keeps_features else logits).half()
        if self._given <= stop < self.streams.shape[1]:
            chances = logits[:, -1].float().softmax(-1).cpu()
            luck = torch.Generator().manual_seed(mixed_seed(self._seed, 2**30 + stop))
            self.streams[:, stop] = torch.multinomial(chances, 1, generator=luck)[:, 0]
        self._done = stop
