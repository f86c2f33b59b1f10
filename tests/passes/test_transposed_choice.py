"""Which form a ConvTranspose becomes: by time, by work, or by name."""

from dataclasses import dataclass

import numpy as np
import pytest
from conftest import SATURATES
from transposed_graphs import lower, run, two_layers, types

from aigc_compress.closeness import sqnr_db
from aigc_compress.engines.ort import optimized
from aigc_compress.errors import PassError, StoppedError
from aigc_compress.passes import Context
from aigc_compress.passes.transposed import Layer, LowerConfig, LowerPass, write_form


@dataclass(frozen=True)
class FakeSpeedup:
    ratio: float

    @property
    def verdict(self):
        within = "faster" if self.ratio > 1 else "slower"
        return "no difference shown" if abs(self.ratio - 1) < 0.05 else within


class FakeMeter:
    """Tells by the operators of a graph how fast it is, and notes what it was asked."""

    def __init__(self, **ratios):
        self.ratios, self.asked = ratios, []

    def compare(self, baseline, candidates, feeds, engines=()):
        self.asked.append((baseline.payload, [each.payload for each in candidates], feeds))
        self.engines = engines
        return [FakeSpeedup(self.ratios[kind_of(each.payload)]) for each in candidates]


def kind_of(model):
    found = types(model)
    if "ConvTranspose" in found:
        return "kept"
    if "Col2Im" in found:
        return "gemm"
    if found.count("Conv") > 1:
        return "phases"
    if "Slice" in found:
        return "crop"
    return "zero_tap" if "Reshape" in found or "DepthToSpace" in found else "plain"


RATIOS = {"zero_tap": 0.5, "crop": 1.2, "phases": 1.5, "gemm": 0.9}


@pytest.mark.parametrize("best", RATIOS)
@pytest.mark.parametrize("precision", ["float", "integer"])
def test_the_form_that_the_meter_finds_fastest_is_taken(best, precision):
    artifact, feeds = two_layers()
    meter = FakeMeter(**(RATIOS | {best: 3.0}))
    after, told = lower(artifact, feeds, meter, precision=precision)
    assert {layer["form"] for layer in told.values()} == {best}
    assert told["y"]["ratios"] == RATIOS | {best: 3.0}
    assert "strides are" in told["y"]["refused"]["plain"]
    assert "ConvTranspose" not in types(after)
    assert {each.name for each in after.graph.initializer}.isdisjoint({"w1", "w2", "b1"})


@pytest.mark.parametrize(
    ("precision", "ratio", "form"),
    [
        ("float", 1.2, "crop"),
        ("float", 1.01, "ConvTranspose"),
        ("integer", 1.01, "crop"),
        ("integer", 0.8, "ConvTranspose"),
    ],
)
def test_convtranspose_stays_where_the_best_form_does_not_pay(precision, ratio, form):
    artifact, feeds = two_layers()
    meter = FakeMeter(zero_tap=0.1, crop=ratio, phases=0.1, gemm=0.1)
    after, told = lower(artifact, feeds, meter, precision=precision)
    assert told["h"]["form"] == form
    assert ("reason" in told["h"]) == (form == "ConvTranspose")
    assert ("ConvTranspose" in types(after)) == (form == "ConvTranspose")


def test_layers_of_one_kind_are_timed_once_at_the_shapes_that_they_see():
    artifact, feeds = two_layers()
    meter = FakeMeter(**RATIOS)
    lower(artifact, feeds, meter)
    ((baseline, candidates, seen),) = meter.asked
    np.testing.assert_array_equal(seen["x"], feeds[0]["x"])
    assert types(baseline) == ["ConvTranspose"]
    for each in candidates:
        np.testing.assert_array_equal(run(each, seen["x"]), run(baseline, seen["x"]))


def test_forms_are_timed_on_integers_where_integers_are_wanted():
    artifact, feeds = two_layers()
    meter = FakeMeter(**RATIOS)
    lower(artifact, feeds, meter, precision="integer")
    ((baseline, candidates, seen),) = meter.asked
    wanted = run(baseline, seen["x"])
    for each in candidates:
        at_run_time = types(optimized(each))
        integers = {"QLinearConv", "QLinearMatMul"} & set(at_run_time)
        assert integers
        assert not {"Conv", "FusedConv", "MatMul"} & set(at_run_time)
        borders = at_run_time.count("QuantizeLinear"), at_run_time.count("DequantizeLinear")
        assert borders == ((2, 2) if "Col2Im" in at_run_time else (1, 1))
        # 8 bits resolve 30 to 40 dB where sums are exact; here time alone counts.
        assert sqnr_db(wanted, run(each, seen["x"])) > (5 if SATURATES else 25)


def test_without_a_meter_the_fewest_multiplications_decide():
    artifact, feeds = two_layers()
    _, told = lower(artifact, feeds)
    # Kernel 4, stride 2 at 6x6: crop makes 7x7 blocks of 16 taps, phases 6x6 of 16, zero_tap of 36.
    assert told["h"] == told["y"]
    assert told["h"]["form"] == "phases"
    assert told["h"]["ratios"] == {}


def test_a_named_form_is_taken_without_asking_the_meter():
    artifact, feeds = two_layers()
    meter = FakeMeter(**RATIOS)
    _, told = lower(artifact, feeds, meter, form="zero_tap")
    assert {layer["form"] for layer in told.values()} == {"zero_tap"}
    assert meter.asked == []


def test_where_a_named_form_does_not_apply_another_is_taken_and_the_reason_told():
    artifact, feeds = two_layers(opset=17)
    _, told = lower(artifact, feeds, form="gemm")
    assert told["h"]["form"] == "phases"
    assert "opset 18" in told["h"]["refused"]["gemm"]


def test_a_meter_that_fails_leaves_the_choice_to_multiplications():
    class Broken:
        def compare(self, *_):
            raise PassError("no timer")

    artifact, feeds = two_layers()
    _, told = lower(artifact, feeds, Broken())
    assert told["h"]["form"] == "phases"
    assert told["h"]["refused"]["crop"] == "not timed: no timer"


def test_an_interruption_while_timing_goes_through():
    class Interrupted:
        def compare(self, *_):
            raise StoppedError("stopped")

    artifact, feeds = two_layers()
    with pytest.raises(StoppedError):
        LowerPass().run(artifact, LowerConfig(), Context(feeds, meter=Interrupted()))


def test_a_replacement_that_changes_the_numbers_is_taken_back(monkeypatch):
    def double(form, layer, **how):
        wrong = Layer(layer.geometry, layer.weight * 2, layer.bias, layer.sizes)
        return write_form(form, wrong if how["target"] == "h" else layer, **how)

    monkeypatch.setattr("aigc_compress.passes.transposed.lower.write_form", double)
    artifact, feeds = two_layers()
    after, told = lower(artifact, feeds)
    assert told["h"]["form"] == "ConvTranspose"
    assert "agree to" in told["h"]["reason"]
    assert told["y"]["form"] == "phases"
    assert types(after).count("ConvTranspose") == 1


@pytest.mark.parametrize("kept", [0.4, 2.0])
def test_on_another_engine_forms_race_the_layer_itself_there(kept):
    artifact, feeds = two_layers()
    meter = FakeMeter(**RATIOS, kept=kept)
    _, told = lower(artifact, feeds, meter, precision="integer", engine="openvino")
    assert {*meter.engines} == {"openvino"}
    _, forms, _ = meter.asked[0]
    assert len(meter.engines) == len(forms)
    assert types(forms[0]) == ["ConvTranspose"]
    integer = next(each for each in forms if kind_of(each) == "phases")
    assert "DepthToSpace" in types(integer)
    assert types(integer).count("QuantizeLinear") == 1  # before the layers, and not behind them
    if kept < 1:
        assert {layer["form"] for layer in told.values()} == {"phases"}
    else:
        assert {layer["form"] for layer in told.values()} == {"ConvTranspose"}
        assert "0.75 times as fast on openvino" in told["y"]["reason"]
