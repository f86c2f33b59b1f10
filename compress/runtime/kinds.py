"""What bundles of a kind do beside running: draw, classify, write."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aigc_compress.errors import FeedError, InputFileError

from .archive import Archive
from .bundle import Bundle
from .manifest import Manifest, Variant

__all__ = ["KINDS", "Classifier", "Guess", "Images", "Writer", "kind_of"]

BATCH = 32  # samples of a call, so that memory stays bounded


class Images(Bundle):
    """Draws images from latents."""

    def generate(self, n: int, seed: int = 0) -> NDArray[np.uint8]:
        """Return `n` images, uint8 (n, height, width) or (n, height, width, channels)."""
        told = self.variant.processing
        rng = np.random.default_rng(seed)
        latents = rng.standard_normal((n, int(told["size"])), dtype=np.float32)
        drawn = [
            self.run({told["latent"]: latents[start : start + BATCH]})[told["image"]]
            for start in range(0, n, BATCH)
        ]
        low, high = told["range"]
        unit = (np.concatenate(drawn) - low) / (high - low) if drawn else np.zeros((0, 1, 1, 1))
        pixels = np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8)
        return pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class Guess:
    """A class, and how likely it is."""

    label: str
    probability: float


class Classifier(Bundle):
    """Tells what is on a picture."""

    def classify(self, image: NDArray[np.uint8], *, best: int = 5) -> list[Guess]:
        """Return the likeliest classes, the likeliest first.

        Args:
            image: uint8 (height, width) or (height, width, channels) of the size that the model
                takes; light on black where it has one channel.
            best: how many.

        Raises:
            FeedError: it is of another size or dtype.
        """
        told = self.variant.processing
        port = next(each for each in self.variant.inputs if each.name == told["image"])
        planes = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
        if image.dtype != np.uint8 or planes.shape != tuple(port.shape[1:]):
            raise FeedError(
                f"The picture is {image.dtype} {image.shape}; the model takes uint8 with"
                f" (channels, height, width) = {tuple(port.shape[1:])}."
            )
        fed = planes[None].astype(np.float32) * np.float32(told["scale"]) + told["offset"]
        logits = self.run({told["image"]: fed.astype(np.float32)})[told["logits"]][0]
        shares = _softmax(logits)
        order = np.argsort(-shares, kind="stable")[:best]
        return [Guess(told["labels"][each], float(shares[each])) for each in order]


class Writer(Bundle):
    """Goes on with a text, character by character."""

    def write(
        self,
        prompt: str | None = None,
        n: int = 400,
        *,
        temperature: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield `n` characters one by one; nothing is computed before they are asked for.

        Args:
            prompt: what to go on with; None: the bundle's own.
            n: how many.
            temperature: divides the logits; 0 takes the likeliest; None: the bundle's own.
            seed: of what is drawn.

        Raises:
            FeedError: the prompt is empty or holds a character that the model does not know, or
                the temperature is negative.
        """
        told = self.variant.processing
        heat = float(told["temperature"] if temperature is None else temperature)
        if not 0 <= heat < float("inf"):
            raise FeedError(f"The temperature is {heat}; it must be a number of at least 0.")
        tokens = self._tokens(told["prompt"] if prompt is None else prompt)
        return self._written(tokens, n, heat, np.random.default_rng(seed))

    def _written(
        self, tokens: NDArray[np.int64], n: int, heat: float, rng: np.random.Generator
    ) -> Iterator[str]:
        told = self.variant.processing
        state = {each["input"]: _zeros(each["shape"]) for each in told["states"]}
        for _ in range(n):
            outputs = self.run({told["tokens"]: tokens[None], **state})
            state = {each["input"]: outputs[each["output"]] for each in told["states"]}
            token = _drawn(outputs[told["logits"]][0, -1], heat, rng)
            yield told["alphabet"][token]
            tokens = np.array([token], np.int64)

    def _tokens(self, text: str) -> NDArray[np.int64]:
        places = {character: at for at, character in enumerate(self.variant.processing["alphabet"])}
        unknown = sorted({*text} - {*places})
        if unknown or not text:
            what = f"holds {unknown[0]!r}, which the model does not know" if unknown else "is empty"
            raise FeedError(f"The prompt {what}. It knows {''.join(sorted(places))!r}.")
        return np.array([places[each] for each in text], np.int64)


# What `processing` holds, and which of it are names of inputs and outputs.
TOLD: Mapping[str, tuple[str, ...]] = {
    "images": ("latent", "image", "size", "range"),
    "classes": ("image", "logits", "scale", "offset", "labels"),
    "text": ("tokens", "logits", "alphabet", "states", "prompt", "temperature"),
}
KINDS: Mapping[str | None, type[Bundle]] = {
    None: Bundle,
    "images": Images,
    "classes": Classifier,
    "text": Writer,
}


def kind_of(archive: Archive, manifest: Manifest, **options: Any) -> Bundle:
    """Return the loaded bundle as what its kind does.

    Raises:
        InputFileError: there is no such kind, or what it needs to know is missing.
    """
    if manifest.kind not in KINDS:
        raise InputFileError(f"There is no kind of bundle {manifest.kind!r} in this version.")
    for variant in manifest.variants:
        missing = _lacking(variant, TOLD.get(manifest.kind or "", ()))
        if missing:
            raise InputFileError(f"The processing of {variant.name} lacks {', '.join(missing)}.")
    return KINDS[manifest.kind](archive, manifest, **options)


def _lacking(variant: Variant, wanted: Sequence[str]) -> list[str]:
    """Return what a kind wants to know and is not told, or told of no input or output."""
    told, ports = variant.processing, {each.name for each in (*variant.inputs, *variant.outputs)}
    missing = [name for name in wanted if name not in told]
    missing += [name for name in wanted[:2] if name in told and told[name] not in ports]
    faulty = [at for at, each in enumerate(_states(told)) if not _fits(each, ports)]
    return missing + [f"state {at}" for at in faulty]


def _states(processing: Mapping[str, Any]) -> list[Any]:
    states = processing.get("states", [])
    return states if isinstance(states, list) else [states]


def _fits(state: Any, ports: Collection[str]) -> bool:
    if not isinstance(state, dict) or not {"input", "output", "shape"} <= {*state}:
        return False
    return state["input"] in ports and state["output"] in ports


def _zeros(shape: list[int | str]) -> NDArray[np.float32]:
    return np.zeros([1 if isinstance(axis, str) else axis for axis in shape], np.float32)


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(shifted / shifted.sum())


def _drawn(logits: NDArray[Any], heat: float, rng: np.random.Generator) -> int:
    if heat == 0:
        return int(logits.argmax())
    return int(rng.choice(len(logits), p=_softmax(logits / heat)))
