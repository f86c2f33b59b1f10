"""Measure the noise that rounding brings to the outputs, in dB, while there is time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime import InferenceSession

from aigc_compress.closeness import agreement_db
from aigc_compress.engines.ort import create_session, session_options
from aigc_compress.errors import PassError, first_line
from aigc_compress.machine import machine_scheme
from aigc_compress.schemes import SCHEMES
from aigc_compress.task import OnStep

from .forms import Forms
from .result import Held, LayerResult, SchemeResult, Whole
from .sites import Site

__all__ = ["SETS", "NoiseMeter"]

SETS = 8  # of feeds that noise is measured on
WORST = 3  # layers that are left out, alone and together
DISABLED = "optimization.disable_specified_optimizers"
WEIGHTED = ("Conv", "GRU", "Gemm", "LSTM", "MatMul")


class NoiseMeter:
    """Compares forms of a graph with the graph itself, on the first few calibration feeds.

    Attributes:
        skipped: what there was no time for, in words.
    """

    def __init__(
        self, forms: Forms, *, max_minutes: float | None = None, on_step: OnStep | None = None
    ) -> None:
        """Run the graph of floats.

        Args:
            forms: what makes the forms.
            max_minutes: time from now after which nothing is measured any more; None: no limit.
            on_step: called with (done, total) after each measurement.
        """
        self._forms, self._on_step = forms, on_step
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._feeds = forms.context.calibration[:SETS]
        self._wanted = self._outputs(forms.graph)
        self._known: dict[tuple[Any, ...], float | None] = {}
        self._done = 0
        worst = min(WORST, len(forms.sites) - 1)
        self._total = 4 + len(forms.sites) + worst + max(0, worst - 1) + len(SCHEMES)
        self.skipped: list[str] = []

    def whole(self, quantized: ModelProto) -> Whole:
        """Return the noise of all layers together.

        Args:
            quantized: every layer on integers, as the quantize pass makes it.
        """
        forms, names = self._forms, self._forms.everything
        best = forms.with_settings(ranges="auto")
        has_ranges = any(site.form == "static" for site in forms.sites)
        return Whole(
            weights_db=self._db(lambda: forms.weights(names), "all weights"),
            activations_db=self._db(lambda: forms.activations(names), "all activations"),
            both_db=self._db(lambda: quantized, "everything"),
            least_error_db=self._db(lambda: best.integers(names), "least-error ranges")
            if has_ranges
            else None,
        )

    def layer(self, site: Site) -> LayerResult:
        """Return the noise of one layer alone."""
        if self._is_late():
            self.skipped.append(site.name)
            self._step()
            return LayerResult(site, note="there was no time")
        forms, found = self._forms, LayerResult(site)
        try:
            found = replace(found, both_db=self._agreement(forms.integers(site.nodes)))
            has_weights = site.kind in WEIGHTED
            if has_weights:
                found = replace(found, weights_db=self._agreement(forms.weights(site.nodes)))
            found = replace(found, activations_db=self._agreement(forms.activations(site.nodes)))
        except PassError as error:  # alone it cannot be integer: the tool or the engine refuses it
            found = replace(found, note=first_line(error))
        self._step()
        return found

    def without(self, worst: Sequence[LayerResult]) -> Iterator[Held]:
        """Yield the noise of everything but each of the worst few, then but the worst two, three.

        Args:
            worst: measured layers, the most harmful first.
        """
        few = worst[: min(WORST, len(self._forms.sites) - 1)]  # something must stay
        sets = [[each] for each in few]
        sets += [[*few[:count]] for count in range(2, len(few) + 1)]
        for held in sets:
            names = tuple(each.site.name for each in held)
            kept = self._forms.everything - {name for each in held for name in each.site.nodes}
            told = f"all but {', '.join(names)}"
            yield Held(names, self._db(partial(self._forms.integers, kept), told))

    def schemes(self) -> Iterator[SchemeResult]:
        """Yield the noise of every scheme of the table."""
        here = machine_scheme()
        for scheme in SCHEMES.values():
            key = tuple(sorted(scheme.settings.items()))
            if key not in self._known:
                forms = self._forms.with_settings(**scheme.settings)
                make = partial(forms.integers, forms.everything)
                self._known[key] = self._db(make, f"the scheme {scheme.name}")
            else:
                self._step()
            yield SchemeResult(scheme, self._known[key], scheme is here)

    def _db(self, make: Callable[[], ModelProto | None], told: str) -> float | None:
        """Return the agreement of what is made; None where it cannot be made or time is up."""
        if self._is_late():
            self.skipped.append(told)
            self._step()
            return None
        try:
            return self._agreement(make())
        except PassError:
            return None
        finally:
            self._step()

    def _agreement(self, model: ModelProto | None) -> float | None:
        """Return the SQNR of the worst output over all feeds, as `quantize` judges it."""
        if model is None:
            return None
        found = self._outputs(model)
        return min(agreement_db(value, found[name]) for name, value in self._wanted.items())

    def _outputs(self, model: ModelProto) -> dict[str, NDArray[Any]]:
        """Return every output over all feeds as one flat array."""
        session = _session(model)
        names = [each.name for each in session.get_outputs()]
        try:
            runs = [session.run(names, each) for each in self._feeds]
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise PassError(f"ONNX Runtime does not run a form: {first_line(error)}") from error
        columns = zip(*runs, strict=True)
        return {
            name: np.concatenate([np.asarray(each).ravel() for each in values])
            for name, values in zip(names, columns, strict=True)
        }

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _step(self) -> None:
        self._done += 1
        if self._on_step is not None:
            self._on_step(min(self._done, self._total), self._total)


def _session(model: ModelProto) -> InferenceSession:
    """Return a session that rounds nothing but what the graph says.

    Without the setting, ONNX Runtime 1.32 makes INT8, per tensor, of the float weights of a Conv,
    ConvTranspose or Gemm that stands between DequantizeLinear and QuantizeLinear.
    """
    options = session_options(1)
    options.add_session_config_entry(DISABLED, "WeightBiasQuantization")
    return create_session(model.SerializeToString(), options)
