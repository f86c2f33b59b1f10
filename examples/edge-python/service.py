"""A service that draws and writes from bundles, and stays within a latency target under load.

    aigc-compress bundle gan-edge --fallback gan -o gan.aigc
    aigc-compress bundle rnn-edge --fallback rnn -o rnn.aigc
    pip install -r requirements.txt
    python service.py gan.aigc rnn.aigc --port 8000 --target-ms 60

GET /images?n=16&seed=1 is a PNG, /text?prompt=In+the+beginning&n=200 is text as it is written,
/health proves the bundles on this device, /stats tells what runs and why; POST /feedback?good=false
is a user's word on the pictures.
"""

import argparse
import asyncio
import io
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

from aigc_compress.errors import AigcCompressError
from aigc_compress.runtime import Adaptive, Images, Policy, Writer, load
from aigc_compress.runtime.verifying import verify

MOST_WAITING = 512


class Drawing:
    """Draws on a few threads, with the variant of the bundle that the load leaves time for."""

    def __init__(self, bundle: Images, target_ms: float) -> None:
        self.model = Adaptive(bundle, Policy(target_ms=target_ms))
        self._told = bundle.variant.processing
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)
        self._waiting = 0

    async def grid(self, n: int, seed: int) -> bytes:
        """Return a PNG of `n` images; raises HTTPException 503 where too many wait already."""
        if self._waiting >= MOST_WAITING:
            raise HTTPException(503, "Too many requests wait; try again.")
        came, loop = time.monotonic(), asyncio.get_running_loop()
        self._waiting += 1
        try:
            return await loop.run_in_executor(self._pool, self._drawn, n, seed, came)
        finally:
            self._waiting -= 1

    def _drawn(self, n: int, seed: int, came: float) -> bytes:
        size = int(self._told["size"])
        latents = np.random.default_rng(seed).standard_normal((n, size), dtype=np.float32)
        outputs = self.model.run({self._told["latent"]: latents}, since=came)
        return png(outputs[self._told["image"]])

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown()


def png(images: np.ndarray) -> bytes:
    """Return a PNG of images, float32 (N, 1, height, width) in [-1, 1], in a square."""
    columns = int(np.ceil(np.sqrt(len(images))))
    pixels = np.clip((images[:, 0] + 1) * 127.5, 0, 255).astype(np.uint8)
    blank = np.zeros((-len(pixels) % columns, *pixels.shape[1:]), np.uint8)
    rows = np.concatenate([pixels, blank]).reshape(-1, columns, *pixels.shape[1:])
    stream = io.BytesIO()
    height, width = rows.shape[0] * rows.shape[2], columns * rows.shape[3]
    Image.fromarray(rows.swapaxes(1, 2).reshape(height, width)).save(stream, "PNG")
    return stream.getvalue()


def make_app(gan: Path, rnn: Path, *, target_ms: float) -> FastAPI:
    """Return the service of two bundles."""
    drawing = Drawing(load(gan), target_ms)
    writer: Writer = load(rnn)

    @asynccontextmanager
    async def lifespan(_app: FastAPI):
        yield
        drawing.close()

    app = FastAPI(title="aigc-compress on the edge", lifespan=lifespan)

    @app.get("/images")
    async def images(n: int = Query(16, ge=1, le=64), seed: int = Query(0, ge=0)) -> Response:
        return Response(await drawing.grid(n, seed), media_type="image/png")

    @app.get("/text")
    def text(
        prompt: str = Query("In the beginning", max_length=1000),
        n: int = Query(200, ge=1, le=2000),
        temperature: float = Query(0.7, ge=0, le=10),
        seed: int = Query(0, ge=0),
    ) -> StreamingResponse:
        try:
            characters: Iterator[str] = writer.write(prompt, n, temperature=temperature, seed=seed)
        except AigcCompressError as error:
            raise HTTPException(422, str(error)) from error
        return StreamingResponse(characters, media_type="text/plain; charset=utf-8")

    @app.get("/health")
    def health() -> JSONResponse:
        found = [verify(each) for each in (gan, rnn)]
        is_well = all(each.variant for each in found)
        told = {"well": is_well, "bundles": [each.document() for each in found]}
        return JSONResponse(told, 200 if is_well else 503)

    @app.get("/stats")
    def stats() -> dict:
        return {"images": drawing.model.stats(), "text": writer.stats()}

    @app.post("/feedback")
    def feedback(good: bool) -> dict:
        drawing.model.feedback(is_good=good)
        return {"variant": drawing.model.variant}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gan", type=Path)
    parser.add_argument("rnn", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--target-ms", type=float, default=60.0)
    told = parser.parse_args()
    app = make_app(told.gan, told.rnn, target_ms=told.target_ms)
    uvicorn.run(app, host=told.host, port=told.port, log_level="warning")


if __name__ == "__main__":
    main()
