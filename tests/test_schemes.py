import numpy as np
import pytest

from aigc_compress.cli.quantize import IsaName
from aigc_compress.passes import QuantizeConfig
from aigc_compress.passes.quantize.static import ANCHORS, FOLLOWERS
from aigc_compress.schemes import SCHEMES, scheme_for

INT16 = np.iinfo(np.int16)


@pytest.mark.parametrize(
    ("flags", "architecture", "name"),
    [
        ((), "x86_64", "avx2"),
        (("avx2",), "AMD64", "avx2"),
        (("avx2", "avx512f"), "x86_64", "avx512"),
        (("avx2", "avx_vnni"), "x86_64", "vnni"),
        (("avx2", "avx512f", "avx512_vnni"), "x86_64", "vnni"),
        (("avx2", "avx512f", "avx512_vnni", "amx_int8"), "x86_64", "amx"),
        ((), "aarch64", "arm"),
        (("asimddp",), "aarch64", "arm-dotprod"),
        (("asimddp", "i8mm"), "arm64", "arm-i8mm"),
    ],
)
def test_the_scheme_follows_the_instruction_set(flags, architecture, name):
    assert scheme_for(frozenset(flags), architecture) is SCHEMES[name]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_every_scheme_is_one_that_the_quantize_pass_can_make(scheme):
    config = QuantizeConfig(**scheme.settings)
    assert config.activations == scheme.activations
    assert scheme.is_symmetric == (config.activations == "int8")  # what the pass makes of int8
    assert scheme.reason
    assert scheme is SCHEMES[scheme.name]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_every_operator_named_is_one_that_can_be_made_integer(scheme):
    elsewhere = {"ArgMax", "ConvTranspose", "Gather", "LSTM", "Where"}  # not by the static pass
    assert set(scheme.operators) <= {*ANCHORS, *FOLLOWERS, *elsewhere}
    assert "Conv" in scheme.operators


LARGEST = {7: 64, 8: 127}  # magnitudes of symmetric weights as the quantize pass makes them


@pytest.mark.parametrize("name", ["avx2", "avx512", "arm"])
def test_where_two_products_are_added_in_int16_their_sum_fits(name):
    scheme = SCHEMES[name]
    activations = np.iinfo(scheme.activations)
    weight = LARGEST[scheme.weight_bits]
    ends = [2 * each * w for each in (activations.min, activations.max) for w in (-weight, weight)]
    assert INT16.min <= min(ends)
    assert max(ends) <= INT16.max


def test_a_file_can_be_asked_for_by_every_scheme_that_onnx_runtime_runs():
    assert {each.value for each in IsaName} == set(SCHEMES) - {"tensorrt"}


def test_what_was_not_run_says_so():
    assert {name for name, each in SCHEMES.items() if each.measured} == {"avx2", "vnni"}
