"""Write King James English: bits per character on held-out chapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import UsageError
from aigc_compress.models import data
from aigc_compress.task import Exhibit, Feeds, OnStep, Quality, Runner, Split, Use, batches

__all__ = ["WriteText"]

STREAMS = 32
WINDOW = 64
PROMPT, EXHIBIT_CHARACTERS, TEMPERATURE = "In the beginning", 400, 0.7


class WriteText:
    """Tokens int64 (N, T) and state float32 (layers, N, hidden) -> logits (N, T, characters)."""

    name = "rnn"

    def __init__(
        self, config: Mapping[str, Any], sizes: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.alphabet: str = config["alphabet"]
        self.states = ("h", "c") if config.get("cell", "lstm") == "lstm" else ("h",)
        cell = (sizes or {}).get("cell", {})
        hidden = cell.get("hidden_size", config.get("hidden", 512))
        self.state_shape = (int(config.get("layers", 2)), int(hidden))

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

    def use(self) -> Use:
        """Return how an app writes."""
        layers, hidden = self.state_shape
        shape = [layers, "batch", hidden]
        states = [{"input": s, "output": f"{s}_out", "shape": shape} for s in self.states]
        processing: dict[str, Any] = {
            "tokens": "tokens",
            "logits": "logits",
            "alphabet": self.alphabet,
            "states": states,
            "prompt": PROMPT,
            "temperature": TEMPERATURE,
        }
        meanings = {"tokens": "places in the alphabet", "logits": "of the next character"}
        meanings |= {name: "state before" for name in self.states}
        meanings |= {f"{name}_out": "state after" for name in self.states}
        return Use("text", processing, meanings, (data.TEXT_LICENCE,))

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
        reference: Runner | None = None,
        with_details: bool = True,
    ) -> Quality:
        """Measure bits per character: the split is cut into 32 streams read with kept state.

        With a reference, the details tell how far the state drifts from its state over time, and
        how often both expect the same next character; without details they are empty.
        """
        from .drift import compare_streams

        streams = _cut(self.encode(data.text(split)), samples)
        bits = self._bits_per_character(runner, streams, on_step)
        value, spread = float(bits.mean()), float(bits.std(ddof=1) / math.sqrt(STREAMS))
        count = streams[:, 1:].size
        details = {}
        if with_details and reference is not None and reference is not runner:
            details = compare_streams(reference, runner, streams, self.zero_state(STREAMS))
        return Quality("bits per character", value, False, count, split, spread, details)

    def _bits_per_character(
        self, runner: Runner, streams: NDArray[np.int64], on_step: OnStep | None
    ) -> NDArray[np.float64]:
        """Return the mean bits of each of the streams (N, T + 1), read window by window."""
        length = streams.shape[1] - 1
        state, bits = self.zero_state(len(streams)), np.zeros(len(streams))
        for part in batches(length, WINDOW):
            outputs = runner.run({"tokens": streams[:, part], **state})
            state = {name: outputs[f"{name}_out"] for name in self.states}
            bits += _bits(outputs["logits"], streams[:, part.start + 1 : part.stop + 1])
            if on_step:
                on_step(part.stop, length)
        return np.asarray(bits / length)

    def exhibit(self, runner: Runner, *, seed: int = 0) -> Exhibit | None:
        """Write 400 characters; None where the runner has other outputs or other characters."""
        from aigc_compress.models.text import Writer

        writer = Writer(runner, self).write(
            PROMPT, EXHIBIT_CHARACTERS, temperature=TEMPERATURE, seed=seed
        )
        try:
            return Exhibit("text/plain", PROMPT + "".join(writer))
        except (KeyError, UsageError, ValueError):  # no such output, no such letter, NaN as logits
            return None


def _cut(tokens: NDArray[np.int64], samples: int | None) -> NDArray[np.int64]:
    """Cut tokens into 32 streams (32, T + 1) of `samples` characters in all, evenly spread."""
    length = min(samples or len(tokens), len(tokens) - 1) // STREAMS
    if length < 1:
        raise UsageError(f"--samples must be at least {STREAMS} characters for this task.")
    stride = (len(tokens) - 1) // STREAMS
    return np.stack([tokens[i * stride : i * stride + length + 1] for i in range(STREAMS)])


def _bits(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum over time of -log2 p(target): (N, T, V), (N, T) -> (N,)."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(shifted, dtype=np.float64).sum(-1))
    picked = np.take_along_axis(shifted, targets[..., None], -1)[..., 0]
    return np.asarray((log_sum - picked).sum(1) / math.log(2))
