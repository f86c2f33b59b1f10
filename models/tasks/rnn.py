"""Write King James English: bits per character on held-out chapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import UsageError
from aigc_compress.models import data
from aigc_compress.task import Feeds, OnStep, Quality, Runner, Split

__all__ = ["WriteText"]

STREAMS = 32
WINDOW = 64


class WriteText:
    """Tokens int64 (N, T) and state float32 (layers, N, hidden) -> logits (N, T, characters)."""

    name = "rnn"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.alphabet: str = config["alphabet"]
        self.states = ("h", "c") if config.get("cell", "lstm") == "lstm" else ("h",)
        self.state_shape = (int(config.get("layers", 2)), int(config.get("hidden", 512)))

    def encode(self, text: str) -> NDArray[np.int64]:
        """Turn text into tokens, int64 (T,); raises KeyError for a character not known."""
        table = {character: index for index, character in enumerate(self.alphabet)}
        return np.array([table[character] for character in text], dtype=np.int64)

    def zero_state(self, batch: int) -> dict[str, NDArray[np.float32]]:
        """Return the state before the first character, by input name."""
        layers, hidden = self.state_shape
        return {name: np.zeros((layers, batch, hidden), np.float32) for name in self.states}

    def feeds(self, batch: int, *, seed: int, length: int = 1) -> dict[str, NDArray[Any]]:
        """Return windows of training text drawn with `seed`, with random states in (-1, 1)."""
        rng = np.random.default_rng(seed)
        tokens = self.encode(data.text("train")[:200_000])
        starts = rng.integers(len(tokens) - length, size=batch)
        state = {
            name: np.tanh(rng.standard_normal(zero.shape)).astype(np.float32)
            for name, zero in self.zero_state(batch).items()
        }
        return {"tokens": np.stack([tokens[s : s + length] for s in starts]), **state}

    def dynamic_axes(self) -> Mapping[str, Mapping[int, str]]:
        """Return the axes of batch and time."""
        return {"tokens": {0: "batch", 1: "time"}} | {s: {1: "batch"} for s in self.states}

    def calibration(self, count: int, *, seed: int) -> Iterator[Feeds]:
        """Yield single windows of training text, `count` characters in all, from a zero state."""
        tokens = self.encode(data.text("train")[:200_000])
        rng = np.random.default_rng(seed)
        for start in rng.integers(len(tokens) - WINDOW, size=max(1, count // WINDOW)):
            yield {"tokens": tokens[None, start : start + WINDOW], **self.zero_state(1)}

    def evaluate(
        self,
        runner: Runner,
        *,
        split: Split,
        samples: int | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Quality:
        """Measure bits per character: the split is cut into 32 streams read with kept state."""
        tokens = self.encode(data.text(split))
        length = min(samples or len(tokens), len(tokens) - 1) // STREAMS
        if length < 1:
            raise UsageError(f"--samples must be at least {STREAMS} characters for this task.")
        stride = (len(tokens) - 1) // STREAMS
        streams = np.stack([tokens[i * stride : i * stride + length + 1] for i in range(STREAMS)])
        state, total, per_stream = self.zero_state(STREAMS), 0, np.zeros(STREAMS)
        for start in range(0, length, WINDOW):
            stop = min(start + WINDOW, length)
            outputs = runner.run({"tokens": streams[:, start:stop], **state})
            state = {name: outputs[f"{name}_out"] for name in self.states}
            per_stream += _bits(outputs["logits"], streams[:, start + 1 : stop + 1])
            total += stop - start
            if on_step:
                on_step(stop, length)
        bits = per_stream / total
        spread = float(bits.std(ddof=1) / math.sqrt(STREAMS))
        value = float(bits.mean())
        return Quality("bits per character", value, False, total * STREAMS, split, spread)


def _bits(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum over time of -log2 p(target): (N, T, V), (N, T) -> (N,)."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(shifted, dtype=np.float64).sum(-1))
    picked = np.take_along_axis(shifted, targets[..., None], -1)[..., 0]
    return np.asarray((log_sum - picked).sum(1) / math.log(2))
