"""Bundles: what is loaded, when the fallback takes over, and what is refused."""

import asyncio
import json
import threading

import numpy as np
import pytest
from bundles import forge, members_of, write_bundle

from aigc_compress.errors import FeedError, InputFileError, NotOnThisMachineError, UsageError
from aigc_compress.runtime import Bundle, load, processor
from aigc_compress.runtime.verifying import verify

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def made(tmp_path):
    return write_bundle(tmp_path)


def with_variants(manifest, **changed):
    """Return a manifest whose variants have fields changed, by name."""
    told = json.loads(json.dumps(manifest))
    for each in told["variants"]:
        each.update(changed.get(each["name"], {}))
    return told


def test_the_preferred_variant_is_called_like_a_function(made):
    path, _ = made
    with load(path) as model:
        assert isinstance(model, Bundle)
        assert model.variant.name == "fast"
        np.testing.assert_array_equal(model(X), 2 * X)
        np.testing.assert_array_equal(model(x=X), 2 * X)
        np.testing.assert_array_equal(asyncio.run(model.arun({"x": X}))["y"], 2 * X)
        assert model.stats()["calls"] == 3
    with pytest.raises(FeedError, match="closed"):
        model(X)


@pytest.mark.parametrize(
    "feeds", [{}, {"z": X}, {"x": X[:, :3]}, {"x": X.astype(np.int64)}, {"x": X, "more": X}]
)
def test_feeds_that_do_not_fit_are_refused(made, feeds):
    with load(made[0]) as model, pytest.raises(FeedError):
        model(**feeds)


def test_the_fallback_takes_over_where_golden_outputs_differ(tmp_path):
    path, _ = write_bundle(tmp_path)
    other, _ = write_bundle(tmp_path.parent, factors=(2.5, 2.0))
    members = members_of(other)
    forge(path, **{"models/fast.onnx": members["models/fast.onnx"]})
    with pytest.warns(UserWarning, match="fast is not used: its outputs agree"):
        model = load(path)
    assert model.variant.name == "exact"
    # 2.5 x against 2 x: the noise is a quarter of the signal's amplitude.
    assert model.checks[0].agreement_db == pytest.approx(20 * np.log10(4), abs=0.01)
    found = verify(path)
    assert found.variant == "exact"
    assert found.checks[0].reason
    assert not found.checks[1].reason


def test_where_nothing_runs_rightly_it_says_so(tmp_path, run_cli):
    path, _ = write_bundle(tmp_path)
    other, _ = write_bundle(tmp_path.parent, factors=(3.0, 3.0))
    forge(path, **{k: v for k, v in members_of(other).items() if k.startswith("models/")})
    with (
        pytest.warns(UserWarning, match="is not used"),
        pytest.raises(NotOnThisMachineError, match="exact: its outputs"),
    ):
        load(path)
    ended = run_cli("verify", path)
    assert ended.code == 1
    assert "verified:" not in ended.stdout


def test_a_variant_that_needs_what_the_processor_lacks_is_passed_over(made, monkeypatch):
    path, manifest = made
    needs = with_variants(manifest, fast={"needs": {"x86_64": ["avx_vnni"]}})
    forge(path, manifest=needs)
    monkeypatch.setattr(processor, "architecture", lambda: "x86_64")
    monkeypatch.setattr(processor, "flags", lambda: frozenset({"avx2"}))
    with pytest.warns(UserWarning, match="no avx_vnni"):
        assert load(path).variant.name == "exact"
    for flags in (frozenset({"avx2", "avx_vnni"}), None):  # None: the system does not say
        monkeypatch.setattr(processor, "flags", lambda flags=flags: flags)
        assert load(path).variant.name == "fast"
    monkeypatch.setattr(processor, "architecture", lambda: "aarch64")
    assert load(path).variant.name == "fast"


def test_flags_are_read_as_the_system_tells_them(tmp_path, monkeypatch):
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPUINFO", told)
    told.write_text("processor : 0\nFeatures\t: fp asimd asimddp i8mm\n")
    processor.flags.cache_clear()
    assert processor.flags() == {"fp", "asimd", "asimddp", "i8mm"}
    told.unlink()
    processor.flags.cache_clear()
    assert processor.flags() is None
    processor.flags.cache_clear()


def test_a_variant_can_be_asked_for(made):
    assert load(made[0], variant="exact").variant.name == "exact"
    with pytest.raises(UsageError, match=r"no variant 'exakt'.*Did you mean 'exact'"):
        load(made[0], variant="exakt")


def test_a_graph_has_neither_variants_nor_a_signature(made, tmp_path):
    for options in ({"variant": "fast"}, {"key": bytes(32)}):
        with pytest.raises(UsageError, match="Only a bundle"):
            load(tmp_path / "fast.onnx", **options)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"schema": "aigc-compress/bundle/0"}, "this version reads"),
        ({"schema": "aigc-compress/bundle/2"}, "this version reads"),
        ({"variants": []}, "malformed"),
        ({"variants": "fast"}, "malformed"),
        ({"inputs": [{"name": "x"}]}, "malformed"),
        ({"golden": [{"inputs": [], "own_inputs": None, "outputs": {}}]}, "malformed"),
        ({"kind": "smells"}, "no kind of bundle 'smells'"),
        ({"kind": "images"}, "lacks latent"),
        ({"kind": "text", "processing": {"tokens": "x", "logits": "y"}}, "lacks alphabet"),
        ({"kind": "text", "processing": {"states": [{"input": "x"}]}}, "state 0"),
    ],
)
def test_a_whole_bundle_that_lies_is_refused_in_one_line(made, refuse, changed, told):
    path, _ = made
    forge(path, manifest=changed)
    with pytest.raises(InputFileError, match=told):
        load(path)
    if "kind" not in changed:
        assert told in refuse("verify", path, code=2)


@pytest.mark.parametrize(
    "stored",
    [
        {"member": "golden/0/input-0.bin", "shape": [2**20, 2**20]},
        {"member": "golden/0/input-0.bin", "shape": [-1, 4]},
        {"member": "../../etc/passwd", "shape": [1, 4]},
        {"member": "manifest.json", "shape": [1, 4]},
    ],
)
def test_golden_arrays_that_are_not_there_are_refused(made, stored):
    path, manifest = made
    golden = json.loads(json.dumps(manifest["golden"]))
    golden[0]["inputs"] = [stored]
    forge(path, manifest={"golden": golden})
    with pytest.raises(InputFileError):
        load(path)


def test_a_model_that_does_not_load_is_refused(made):
    path, _ = made
    forge(path, **{"models/fast.onnx": b"no graph"})
    with pytest.raises(InputFileError, match="does not load"):
        load(path)


def test_many_threads_call_one_bundle(made):
    model, wrong = load(made[0]), []

    def call(seed):
        x = np.random.default_rng(seed).standard_normal((3, 4), dtype=np.float32)
        for _ in range(50):
            if not np.array_equal(model(x), 2 * x):
                wrong.append(seed)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []
    assert model.stats()["calls"] == 200


def test_verify_tells_and_times(made, run_cli):
    path, manifest = made
    forge(path, manifest=with_variants(manifest, fast={"latency_ms": 1.0}))
    ended = run_cli("verify", path, "--time", "--json")
    assert ended.code == 0
    told = json.loads(ended.stdout)
    assert told["variant"] == "fast"
    assert told["timings"]["fast"]["ratio"] == told["timings"]["fast"]["median_ms"]
    assert told["timings"]["exact"]["ratio"] is None
    assert run_cli("verify", path).stdout.endswith("verified: fast runs here\n")
