"""Bundles for sites, and the page of a site in Chromium."""

import contextlib
import functools
import http.server
import json
import shutil
import threading

import pytest
from conftest import graph

from aigc_compress.artifact import Artifact, save_onnx
from aigc_compress.bundling import BundleOptions, make_bundle
from aigc_compress.errors import NotOnThisMachineError
from aigc_compress.runtime.archive import open_archive
from aigc_compress.web import write_site
from aigc_compress.workload import FeedOptions

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 120_000


def parts_of(content, folder):
    """Return the manifest and the members of a made bundle."""
    path = folder / "x.aigc"
    path.write_bytes(content)
    archive = open_archive(path)
    members = {name: archive.read(name) for name in archive.names}
    return json.loads(members["manifest.json"]), members


def doubling_bundle(folder):
    """Return a bundle of two graphs that double numbers; the page knows no demo for it."""
    made = graph("g (float[N, 4] x) => (float[N, 4] y) { y = Add(x, x) }")
    for name in ("fast", "exact"):
        save_onnx(Artifact("onnx", made), folder / f"{name}.onnx")
    feeds = FeedOptions(feed=("x=uniform(0,1)",))
    options = BundleOptions(fallback=folder / "exact.onnx", feeds=feeds, is_packed=True)
    return parts_of(make_bundle([folder / "fast.onnx"], options).content, folder)


def written(manifest, members, folder):
    try:
        return write_site(manifest, members, folder)[0]
    except NotOnThisMachineError as error:
        pytest.skip(str(error))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served(folder):
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class Visit:
    """A page that was opened, with everything that it asked for and complained about."""

    def __init__(self, page, address):
        self.page, self.address = page, address
        self.requests, self.faults = [], []
        page.on("request", lambda asked: self.requests.append(asked.url))
        page.on("console", lambda told: self.faults.append(told.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("response", self._note)

    def _note(self, response):
        if response.status >= 400:
            self.faults.append(f"{response.status} {response.url}")

    def open(self):
        self.page.goto(self.address)
        self.page.locator("body[data-ready]").wait_for(timeout=PATIENCE_MS)

    def texts(self, selector):
        return self.page.locator(selector).all_text_contents()

    def until(self, is_so):
        """Wait until something is so, and fail where it does not become so."""
        for _ in range(100):
            if is_so():
                return
            self.page.wait_for_timeout(100)
        pytest.fail("It did not become so within ten seconds.")

    @property
    def outside(self):
        own = (self.address, "data:")
        return [each for each in self.requests if not each.startswith(own)]

    @property
    def beyond(self):
        """Return by how many pixels the page is wider than the window."""
        return self.page.evaluate(
            "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )


@contextlib.contextmanager
def visit(folder, *, width=1400, **options):
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with served(folder) as address, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=[*FLAGS])
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        try:
            yield Visit(page, address)
        finally:
            browser.close()
