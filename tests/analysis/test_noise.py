"""The noise and the time of each layer."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from analysis_graphs import convolutions, model_of, normal, outputs, rounded
from conftest import SATURATES
from onnx import helper

from aigc_compress.analysis.forms import Forms
from aigc_compress.analysis.noise import NoiseMeter
from aigc_compress.analysis.sites import find_sites
from aigc_compress.analysis.times import layer_times
from aigc_compress.machine import machine_scheme
from aigc_compress.meter import NodeTime
from aigc_compress.passes import Context, QuantizeConfig

SAFE = {"reduce_range": SATURATES}  # what is exact on this processor


def decibels(reference, value):
    return 10 * np.log10((reference**2).sum() / ((reference - value) ** 2).sum())


def test_the_noise_of_activations_alone_is_that_of_rounding_them_in_numpy():
    weight, x = normal(20, 24, 32), normal(21, 40, 32)
    weight[:, 1::2] = 0  # one product of two: no pair of them saturates, on any processor
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="layer", transB=1)
    model = model_of([node], {"x": [40, 32]}, {"y": [40, 24]}, w=weight)
    context = Context(({"x": x},), ({"x": x},))
    forms = Forms(model, find_sites(model), QuantizeConfig(reduce_range=False), context)
    found = NoiseMeter(forms).layer(forms.sites[0])

    def through_uint8(values):
        low, high = min(values.min(), 0), max(values.max(), 0)
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale

    exact = x @ weight.T
    assert found.weights_db == pytest.approx(decibels(exact, x @ rounded(weight).T), abs=0.1)
    wanted = through_uint8(through_uint8(x) @ weight.T)
    # the range of the output is read from exact values; a rounded one may end a step beyond
    assert found.activations_db == pytest.approx(decibels(exact, wanted), abs=0.3)
    both = through_uint8(through_uint8(x) @ rounded(weight).T)
    if not machine_scheme().reduces_range:  # elsewhere the sums of 8-bit weights saturate
        assert found.both_db == pytest.approx(decibels(exact, both), abs=0.3)


def test_the_layer_whose_activations_do_the_harm_is_found():
    forms = convolutions(outlier=127.0, **SAFE)
    meter = NoiseMeter(forms)
    tame, _, wild = (meter.layer(site) for site in forms.sites)
    assert wild.both_db < tame.both_db - 20
    assert wild.activations_db < wild.weights_db - 20


def test_what_is_left_out_is_left_on_floats():
    forms = convolutions(outlier=127.0, **SAFE)
    meter = NoiseMeter(forms)
    layers = [meter.layer(site) for site in forms.sites]
    worst = sorted(layers, key=lambda each: each.both_db)
    whole = meter.whole(forms.integers(forms.everything))
    held = {each.names: each.db for each in meter.without(worst)}
    assert len(held) == 3  # two alone, and both: something must stay
    assert held[(worst[0].site.name, worst[1].site.name)] > whole.both_db + 10


def test_noise_is_pooled_over_all_feeds():
    forms = convolutions()
    site = forms.sites[2]
    found = NoiseMeter(forms).layer(site)
    feeds = forms.context.calibration
    wanted = outputs(forms.graph, feeds)
    value = outputs(forms.integers(site.nodes), feeds)
    assert found.both_db == pytest.approx(decibels(wanted, value), abs=1e-3)


def test_a_float_convolution_between_integers_is_not_rounded_behind_our_back():
    forms = convolutions()
    names = forms.everything
    found = NoiseMeter(forms).whole(forms.integers(names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = forms.activations(names).SerializeToString()
    session = onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
    feeds = forms.context.calibration
    value = np.concatenate([session.run(None, each)[0].ravel() for each in feeds])
    wanted = outputs(forms.graph, feeds)
    assert found.activations_db == pytest.approx(decibels(wanted, value), abs=0.1)


class FakeMeter:
    """Tells times by output: floats and integers in turn."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def profile(self, _artifact, _feeds):
        return {name: NodeTime(op, ms, 1) for name, (op, ms) in self.answers.pop(0).items()}


def test_times_of_fused_nodes_belong_to_their_layer():
    floats = {"r": ("Conv", 2.0), "m": ("Mul", 0.5), "y": ("Conv", 3.0)}
    integers = {
        "r_QuantizeLinear_Output": ("QLinearConv", 0.75),
        "m_QuantizeLinear_Output": ("QLinearMul", 0.25),
        "y_QuantizeLinear_Output": ("QLinearConv", 1.0),
    }
    forms = convolutions()
    context = replace(forms.context, meter=FakeMeter(floats, integers))
    times = layer_times(replace(forms, context=context), forms.graph, {})
    assert list(times.values()) == [(2.0, 0.75), (0.5, 0.25), (3.0, 1.0)]


def test_time_that_is_up_is_said():
    forms = convolutions()
    meter = NoiseMeter(forms, max_minutes=0.0)
    layers = [meter.layer(site) for site in forms.sites]
    assert [each.both_db for each in layers] == [None] * 3
    assert meter.skipped == ["tame", "outlier", "wild"]


def test_progress_ends_where_it_said_it_would():
    steps = []
    forms = convolutions()
    meter = NoiseMeter(forms, on_step=lambda done, total: steps.append((done, total)))
    layers = [meter.layer(site) for site in forms.sites]
    meter.whole(forms.integers(forms.everything))
    list(meter.without(layers))
    list(meter.schemes())
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total in steps} == {len(steps)}
