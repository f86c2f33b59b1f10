"""Joined requests: everybody gets his own, whatever the others sent."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from bundles import write_bundle

from aigc_compress.errors import FeedError, UsageError
from aigc_compress.runtime import Batcher, load


@pytest.fixture
def model(tmp_path):
    return load(write_bundle(tmp_path)[0])


def inputs(count):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1 + i % 3, 4), dtype=np.float32) for i in range(count)]


def held_up(model):
    """Make the model wait in its first call until it is told to go on; returns what tells it."""
    run, gate = model.run, threading.Event()

    def waiting(feeds):
        gate.wait(timeout=30)
        return run(feeds)

    model.run = waiting
    return gate


def test_everybody_gets_his_own_samples(model):
    batcher, given = Batcher(model, most=8), inputs(100)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: batcher.run({"x": x})["y"], given))
    for x, y in zip(given, found, strict=True):
        np.testing.assert_array_equal(y, 2 * x)
    told = batcher.stats()
    assert told["samples"] == sum(len(x) for x in given)
    batcher.close()


def test_what_waits_is_joined_up_to_a_number_of_samples(model):
    gate, batcher = held_up(model), Batcher(model, most=4)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(batcher.run, {"x": np.ones((1, 4), np.float32)})
        while batcher.stats()["calls"] == 0:
            pass
        rest = [pool.submit(batcher.run, {"x": np.full((1, 4), i, np.float32)}) for i in range(8)]
        while batcher._waiting.qsize() < 8:
            pass
        gate.set()
        assert first.result()["y"][0, 0] == 2
        assert [each.result()["y"][0, 0] for each in rest] == [2 * i for i in range(8)]
    assert batcher.stats() == {"calls": 3, "samples": 9, "samples_per_call": 3.0}
    batcher.close()


def test_one_that_fails_does_not_fail_the_others(model):
    gate, batcher = held_up(model), Batcher(model, most=8)
    with ThreadPoolExecutor(3) as pool:
        pool.submit(batcher.run, {"x": np.ones((1, 4), np.float32)})
        while batcher.stats()["calls"] == 0:
            pass
        good = pool.submit(batcher.run, {"x": np.ones((2, 4), np.float32)})
        bad = pool.submit(batcher.run, {"x": np.ones((2, 3), np.float32)})
        while batcher._waiting.qsize() < 2:
            pass
        gate.set()
        assert good.result()["y"].shape == (2, 4)
        with pytest.raises(FeedError):
            bad.result()
    batcher.close()


def test_one_that_was_given_up_does_not_stop_the_others(model):
    gate, batcher = held_up(model), Batcher(model)

    async def ask():
        first = asyncio.create_task(batcher.arun({"x": np.ones((1, 4), np.float32)}))
        while batcher.stats()["calls"] == 0:
            await asyncio.sleep(0)
        given_up, kept = (
            asyncio.create_task(batcher.arun({"x": np.full((1, 4), i, np.float32)})) for i in (1, 2)
        )
        while batcher._waiting.qsize() < 2:
            await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        gate.set()
        return (await first)["y"][0, 0], (await kept)["y"][0, 0]

    assert asyncio.run(ask()) == (2, 4)
    assert batcher.stats()["samples"] == 2
    batcher.close()


@pytest.mark.parametrize(
    ("feeds", "told"),
    [
        ({}, "The inputs are x; given"),
        ({"x": np.ones(4, np.float32)}, "another number of axes"),
    ],
)
def test_feeds_that_fit_nothing_are_refused_at_once(model, feeds, told):
    batcher = Batcher(model)
    with pytest.raises(FeedError, match=told):
        batcher.run(feeds)
    batcher.close()


def test_closing_finishes_what_waits_and_refuses_more(model):
    batcher = Batcher(model, within_ms=20)

    async def both():
        return await asyncio.gather(*(batcher.arun({"x": x}) for x in inputs(3)))

    found = asyncio.run(both())
    np.testing.assert_array_equal(found[1]["y"], 2 * inputs(3)[1])
    batcher.close()
    batcher.close()
    with pytest.raises(FeedError, match="closed"):
        batcher.run({"x": inputs(1)[0]})


def test_a_model_without_an_axis_of_samples_cannot_be_joined(model):
    port = model.variant.inputs[0]
    object.__setattr__(port, "shape", (1, 4))
    with pytest.raises(UsageError, match="x has no axis of samples"):
        Batcher(model)
