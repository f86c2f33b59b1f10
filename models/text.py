"""Write text with a character model, on any engine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import UsageError
from aigc_compress.task import Runner

from .tasks.rnn import WriteText

__all__ = ["Writer"]


class Writer:
    """Draw one character after the other, feeding the state back."""

    def __init__(self, runner: Runner, task: WriteText) -> None:
        self.runner = runner
        self.task = task

    def write(
        self, prompt: str, count: int, *, temperature: float = 0.7, top_k: int = 0, seed: int = 0
    ) -> Iterator[str]:
        """Yield `count` characters that go on from `prompt`.

        Args:
            prompt: at least one character, all of the model's alphabet.
            count: number of characters.
            temperature: divides the logits; 0 takes the most likely character.
            top_k: draw among the k most likely characters only; 0 means among all.
            seed: of the drawing.

        Raises:
            UsageError: the prompt is empty or holds an unknown character, or the temperature is
                not a number of at least 0.
        """
        if not (0 <= temperature < float("inf")):
            raise UsageError(f"--temperature {temperature} must be a number of at least 0.")
        logits, state = self._read(prompt)
        rng = np.random.default_rng(seed)
        for _ in range(count):
            token = _draw(logits, temperature=temperature, top_k=top_k, rng=rng)
            yield self.task.alphabet[token]
            logits, state = self._advance(np.array([[token]], np.int64), state)

    def _read(self, prompt: str) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        unknown = sorted(set(prompt) - set(self.task.alphabet))
        if not prompt or unknown:
            raise UsageError(
                f"The prompt {prompt!r} must have at least one character and none of {unknown!r}."
                f" The model knows: {self.task.alphabet!r}."
            )
        return self._advance(self.task.encode(prompt)[None], self.task.zero_state(1))

    def _advance(
        self, tokens: NDArray[np.int64], state: dict[str, NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        outputs = self.runner.run({"tokens": tokens, **state})
        return outputs["logits"][0, -1], {n: outputs[f"{n}_out"] for n in self.task.states}


def _draw(
    logits: NDArray[np.float32], *, temperature: float, top_k: int, rng: np.random.Generator
) -> int:
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    if top_k:
        scaled[scaled < np.sort(scaled)[-min(top_k, len(scaled))]] = -np.inf
    weights = np.exp(scaled - scaled.max())
    return int(rng.choice(len(weights), p=weights / weights.sum()))
