"""The example service over a real socket: what it answers, and how it holds under load."""

import importlib.util
import io
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from aigc_compress.bundling import BundleOptions, make_bundle

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -e '.[dev]'")
httpx = pytest.importorskip("httpx", reason="httpx is not installed: pip install -e '.[dev]'")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[dev]'")
FOLDER = Path(__file__).parents[2] / "examples" / "edge-python"


def example(name):
    spec = importlib.util.spec_from_file_location(f"edge_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("gan", "rnn"):
        made = make_bundle([f"{name}-edge"], BundleOptions(fallback=name))
        (folder / f"{name}.aigc").write_bytes(made.content)
    app = example("service").make_app(folder / "gan.aigc", folder / "rnn.aigc", target_ms=60)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=30)


def test_it_draws_and_writes(url):
    from PIL import Image

    pictures = [httpx.get(f"{url}/images", params={"n": 5, "seed": s}).content for s in (1, 1, 2)]
    assert pictures[0] == pictures[1] != pictures[2]
    grid = np.asarray(Image.open(io.BytesIO(pictures[0])))
    assert grid.shape == (2 * 28, 3 * 28)
    assert grid[28:, 56:].max() == 0 < grid[:28, :28].max()  # the sixth place is empty
    text = httpx.get(f"{url}/text", params={"n": 80, "seed": 1}).text
    assert len(text) == 80
    assert text == httpx.get(f"{url}/text", params={"n": 80, "seed": 1}).text


def test_it_says_what_it_cannot_do(url):
    assert httpx.get(f"{url}/images", params={"n": 1000}).status_code == 422
    refused = httpx.get(f"{url}/text", params={"prompt": "Ä"})
    assert refused.status_code == 422
    assert "does not know" in refused.json()["detail"]


def test_its_health_is_what_verify_finds(url):
    told = httpx.get(f"{url}/health").json()
    assert told["well"]
    assert [each["variant"] for each in told["bundles"]] == ["gan-edge", "rnn-edge"]


@pytest.mark.slow
def test_no_request_fails_under_a_step_of_load_and_moves_are_told(url):
    import asyncio

    load = example("load")
    seen = asyncio.run(load.load(url, 20, (3, 6)))
    assert seen.errors == []
    assert min(map(len, seen.ms.values())) > 15
    assert len(seen.ms[8]) > 3 * len(seen.ms[0])
    told = httpx.get(f"{url}/stats").json()["images"]
    assert {each["name"] for each in told["variants"]} == {"gan", "gan-edge"}
    assert sum(each["calls"] for each in told["variants"]) >= sum(map(len, seen.ms.values()))
    for move in told["moves"]:
        assert move["why"]


def test_recovery_is_counted_from_the_step():
    load = example("load")
    fast, slow = [10.0] * 20, [10.0] * 10 + [100.0] * 10
    told = load.Seen(dict(enumerate([fast, fast, slow, slow, fast, slow, fast, fast])))
    assert told.p95(2) == 100.0
    assert load.recovered(told, (2, 6), 60.0) == 4
    assert load.recovered(load.Seen(dict(enumerate([fast] * 4))), (2, 2), 60.0) == 0
    assert load.recovered(load.Seen(dict(enumerate([fast, slow]))), (1, 1), 60.0) is None
