"""What every engine that is here promises, whatever it runs on."""

import gc
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import psutil
import pytest

from aigc_compress.api import to_onnx
from aigc_compress.engines import ENGINES
from aigc_compress.errors import PassError
from aigc_compress.loading import load_artifact
from aigc_compress.models import REFERENCES
from aigc_compress.workload import FeedOptions, make_workload

# torch.compile imports what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
PRESENT = [name for name, engine in ENGINES.items() if engine.availability().is_available]
ON_GPU = 1e-2  # of the largest output
MIB = 2**20
# Compiling takes minutes of a CPU; these sessions are those of their engine without it.
QUICK = [name for name in PRESENT if "compile" not in name or "cuda" in name]


@pytest.fixture(scope="module")
def references():
    """Return each reference with its graph, its feeds, and ONNX Runtime's outputs."""
    found = {}
    for name in REFERENCES:
        artifact = load_artifact(name)
        workload = make_workload(artifact, FeedOptions())
        found[name] = artifact, to_onnx(artifact, workload), workload
    return found


def opened(engine, references, name):
    artifact, graph, _ = references[name]
    return ENGINES[engine].load(artifact if ENGINES[engine].stage == "torch" else graph, threads=1)


@pytest.fixture(scope="module")
def session_of(references):
    """Return a function that opens an engine on a reference once: compiling takes its time."""
    return cache(lambda engine, name: opened(engine, references, name))


def closeness(engine):
    if engine == "ort":
        return 0.0
    return ON_GPU if ENGINES[engine].is_on_gpu else 1e-4


def feeds_of(references, name, batch, length=1):
    return references[name][2].timing_feeds(batch=batch, length=length, seed=batch)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("engine", PRESENT)
def test_outputs_are_those_of_onnx_runtime_at_every_size(engine, name, references, session_of):
    if engine not in QUICK and "rnn" not in name:
        pytest.skip("of convolutions, test_engines compiles small ones")
    session, reference = session_of(engine, name), session_of("ort", name)
    lengths = (1, 6) if "rnn" in name else (1,)
    for batch in (1, 3):
        for length in lengths:
            feeds = feeds_of(references, name, batch, length)
            wanted, found = reference.run(feeds), session.run(feeds)
            assert set(found) == set(wanted)
            for key, value in wanted.items():
                assert found[key].dtype == value.dtype
                limit = closeness(engine) * np.abs(value).max()
                np.testing.assert_allclose(found[key], value, rtol=0, atol=limit)


@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda feeds: {"other": feeds["image"]},
        lambda feeds: {"image": feeds["image"][0]},
        lambda feeds: {"image": feeds["image"].repeat(2, axis=1)},
        lambda feeds: {},
    ],
)
def test_feeds_that_do_not_fit_are_one_error_in_one_line(engine, spoil, references, session_of):
    session = session_of(engine, "cnn")
    feeds = feeds_of(references, "cnn", 2)
    with pytest.raises(PassError, match="does not run") as told:
        session.run(spoil(feeds))
    assert "\n" not in str(told.value)
    assert session.run(feeds)  # and it goes on


@pytest.mark.parametrize("engine", QUICK)
def test_two_sessions_do_not_disturb_each_other(engine, references, session_of):
    one, other = (session_of(engine, name) for name in ("gan", "cnn"))
    feeds = {name: feeds_of(references, name, 2) for name in ("gan", "cnn")}
    first = one.run(feeds["gan"])["image"].copy(), other.run(feeds["cnn"])["logits"].copy()
    repeated = 1e-4 if ENGINES[engine].is_on_gpu else 0.0  # kernels of a GPU may add in any order
    for _ in range(3):
        again = one.run(feeds["gan"])["image"], other.run(feeds["cnn"])["logits"]
        for value, before in zip(again, first, strict=True):
            np.testing.assert_allclose(value, before, rtol=0, atol=repeated)


@pytest.mark.parametrize("engine", QUICK)
def test_one_session_serves_several_threads(engine, references, session_of):
    session = session_of(engine, "cnn")
    batches = [1 + n % 4 for n in range(40)]
    feeds = {batch: feeds_of(references, "cnn", batch) for batch in set(batches)}
    wanted = {batch: session.run(each)["logits"] for batch, each in feeds.items()}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: session.run(feeds[batch])["logits"], batches))
    for batch, value in zip(batches, found, strict=True):
        np.testing.assert_allclose(value, wanted[batch], atol=max(1e-4, closeness(engine)))


@pytest.mark.parametrize("engine", QUICK)
def test_a_session_that_is_dropped_gives_its_memory_back(engine, references):
    if "torch" in engine:
        pytest.skip("torch, and not the session, holds what memory there is beside the module")

    def open_and_run(times):
        for _ in range(times):
            opened(engine, references, "gan").run(feeds_of(references, "gan", 1))
        gc.collect()
        return psutil.Process().memory_info().rss

    before = open_and_run(10)
    # The weights are 6 MB: kept, they and what is packed of them would be 180 and more.
    assert open_and_run(30) - before < 100 * MIB
