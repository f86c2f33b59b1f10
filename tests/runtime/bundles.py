"""Bundles for tests: made of tiny graphs, and forged ones that are whole but lie."""

import json

import numpy as np
from conftest import graph
from onnx import numpy_helper

from aigc_compress.artifact import Artifact, save_onnx
from aigc_compress.bundling import BundleOptions, make_bundle
from aigc_compress.runtime.archive import archive_bytes, open_archive


def product(factor):
    """Return a graph y = factor * x of four numbers a sample."""
    made = graph(
        "g (float[N, 4] x) => (float[N, 4] y) { y = Mul(x, factor) }".replace(
            "=> (float[N, 4] y)", "=> (float[N, 4] y) <float[4] factor = {1, 1, 1, 1}>"
        )
    )
    table = np.full(4, factor, np.float32)
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "factor"))
    return made


def write_bundle(folder, *, factors=(2.0, 2.0), names=("fast", "exact"), **options):
    """Write a bundle of two variants and return its path and its manifest."""
    paths = []
    for factor, name in zip(factors, names, strict=True):
        save_onnx(Artifact("onnx", product(factor)), folder / f"{name}.onnx")
        paths.append(folder / f"{name}.onnx")
    made = make_bundle([paths[0]], BundleOptions(fallback=paths[1], **options))
    path = folder / "model.aigc"
    path.write_bytes(made.content)
    return path, dict(made.manifest)


def members_of(path):
    archive = open_archive(path)
    return {name: archive.read(name) for name in archive.names}


def forge(path, **changed):
    """Write the bundle again with members or fields of its manifest changed, and right digests."""
    members = members_of(path)
    manifest = json.loads(members["manifest.json"])
    manifest.update(changed.pop("manifest", {}))
    members["manifest.json"] = json.dumps(manifest).encode()
    members.update(changed)
    path.write_bytes(archive_bytes(members))
    return path
