"""What an analysis says in words."""

import pytest

from aigc_compress.analysis import (
    Analysis,
    Held,
    LayerResult,
    SchemeResult,
    Whole,
    saturation_text,
    summarize,
)
from aigc_compress.analysis.sites import Site
from aigc_compress.passes.saturation import Saturation
from aigc_compress.schemes import SCHEMES


def layer(name, db):
    return LayerResult(Site(name, "Conv", (name,), (f"{name}_y",)), both_db=db)


@pytest.mark.parametrize(
    ("whole", "told"),
    [
        (Whole(41.0, 18.0, 18.0), "Activations do the harm: 18.0 dB alone, against 41.0 dB"),
        (Whole(18.0, 41.0, 18.0), "Weights do the harm: 18.0 dB alone, against 41.0 dB"),
        (Whole(20.0, 21.0, 17.0), "about equal harm: 20.0 dB and 21.0 dB"),
        (
            Whole(30.0, None, 28.0),
            "Weights alone give 30.0 dB. All layers on integers give 28.0 dB.",
        ),
        (Whole(None, None, 28.0), "All layers on integers give 28.0 dB."),
        (Whole(41.0, 18.0, 18.0, 22.0), "Ranges of least error would give 22.0 dB."),
    ],
)
def test_the_summary_says_what_does_the_harm(whole, told):
    found = Analysis("m", layers=(layer("a", 20.0), layer("b", 30.0)), whole=whole)
    assert told in " ".join(summarize(found))


@pytest.mark.parametrize(
    ("db", "told"),
    [(27.0, "Without a the rest would reach 27.0 dB."), (18.3, "No layer stands out")],
)
def test_the_summary_names_the_layer_that_stands_out(db, told):
    layers = (layer("a", 20.0), layer("b", 30.0))
    found = Analysis("m", layers=layers, whole=Whole(both_db=18.0), held=(Held(("a",), db),))
    assert told in " ".join(summarize(found))


def test_the_summary_tells_which_layers_saturate_and_what_seven_bits_cost():
    saturation = (
        Saturation("a", "Conv", "y", 10, 0.5, 1.5, 0.1, 0.25),
        Saturation("b", "Conv", "z", 10, 0.1, 1.2, 0.0, 0.0),
        Saturation("c", "Conv", "u", 10, 0.0, 0.9, 0.0, 0.0),
    )
    schemes = (
        SchemeResult(SCHEMES["avx2"], 19.0, False),
        SchemeResult(SCHEMES["vnni"], 20.0, True),
    )
    found = Analysis("m", (layer("a", 20.0),), saturation=saturation, schemes=schemes)
    text = " ".join(summarize(found))
    assert "2 of 3 layers can saturate with 8-bit weights; on these feeds 1 did" in text
    assert "a (25.0% of outputs)" in text
    assert "7-bit weights prevent it: 19.0 dB instead of 20.0 dB." in text


@pytest.mark.parametrize(
    ("finding", "text"),
    [
        (None, "-"),
        (Saturation("a", "Conv", "y", 10, 0.0, 0.9, 0.0, 0.0), "no"),
        (Saturation("a", "Conv", "y", 10, 0.5, 1.5, 0.0, 0.0), "may, not seen"),
        (Saturation("a", "Conv", "y", 10, 0.5, 1.5), "may: 50.0% of pairs"),
        (Saturation("a", "Conv", "y", 10, 0.5, 1.5, 0.1, 0.2), "20.0% of outputs"),
        (Saturation("a", "QAttention", "y", note="not known"), "unknown"),
    ],
)
def test_a_finding_reads_in_one_cell(finding, text):
    assert saturation_text(finding) == text
