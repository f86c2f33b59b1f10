"""`bundle`: one file with everything that an app needs of a model, and that proves itself.

Where a bundle is made, every variant runs on the golden feeds, and what it gives is recorded. The
same inputs give the same bytes on the same machine; a latency is measured on request alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import __version__
from .artifact import graph_tensors
from .bundle_variants import (
    Variant,
    engine_entry,
    file_stem,
    golden_set,
    graph_entry,
    make_variant,
    unique_names,
)
from .errors import UsageError
from .machine import describe_machine
from .passes.operators import operators_at_run_time
from .runtime.archive import SUFFIX, archive_bytes
from .runtime.manifest import MANIFEST, SCHEMA
from .storage import require_writable, write_bytes
from .task import OnStep, quiet
from .workload import FeedOptions, TaskWorkload, Workload

__all__ = ["BundleOptions", "Bundled", "bundle", "make_bundle"]


@dataclass(frozen=True)
class BundleOptions:
    """What a bundle is made with.

    Attributes:
        fallback: the floating-point model, as `load_artifact` reads it; None: there is none.
        engines: TensorRT engines with their cards.
        name: of the bundle; None: the first model's.
        feeds: for a model without a task.
        is_packed: whether graphs are entropy-coded: smaller to download, decoded at load.
        is_timed: whether latencies are measured now and recorded.
        private_key: 32 bytes of an ed25519 key to sign with; None: unsigned.
        licences: what the user says of them.
        seed: of the golden feeds.
    """

    fallback: str | Path | None = None
    engines: tuple[Path, ...] = ()
    name: str | None = None
    feeds: FeedOptions = field(default_factory=FeedOptions)
    is_packed: bool = False
    is_timed: bool = False
    private_key: bytes | None = None
    licences: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Bundled:
    """A made bundle.

    Attributes:
        content: of the file.
        manifest: what it says of itself, ready for JSON.
        notes: what the user should know.
    """

    content: bytes
    manifest: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def bundle(
    models: Sequence[str | Path],
    output: Path,
    options: BundleOptions | None = None,
    *,
    on_step: OnStep = quiet,
) -> Bundled:
    """Make a bundle and write it, whole or not at all; see `make_bundle`.

    Raises:
        OutputError: it cannot be written, or holds more than a bundle can.
    """
    if not output.name.endswith(SUFFIX):
        raise UsageError(f"The output {output} must end in {SUFFIX}.")
    require_writable(output)
    made = make_bundle(models, options, on_step=on_step)
    write_bytes(output, made.content)
    return made


def make_bundle(
    models: Sequence[str | Path],
    options: BundleOptions | None = None,
    *,
    on_step: OnStep = quiet,
) -> Bundled:
    """Make a bundle of variants of one model.

    Args:
        models: `.onnx` files, or what exports to one, in the order of preference.
        options: see BundleOptions.
        on_step: called with (done, total) variants.

    Raises:
        UsageError: a source is wrong, or the variants are not of one task.
        PassError: a variant does not run on its feeds.
        NotOnThisMachineError: signing needs the package cryptography.
    """
    options = options or BundleOptions()
    sources = [*models, *([] if options.fallback is None else [options.fallback])]
    if not sources:
        raise UsageError("A bundle needs a model.")
    variants = []
    for done, source in enumerate(sources):
        on_step(done, len(sources))
        made = make_variant(source, options.feeds, seed=options.seed, is_timed=options.is_timed)
        variants.append(made)
    _require_one_task(variants)
    variants = _named_apart(variants)
    members: dict[str, bytes] = {}
    manifest = _manifest(variants, options, members)
    ordered = {MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode(), **members}
    content = archive_bytes(ordered, private_key=options.private_key)
    notes = (*_about_feeds(variants[0].workload, options.feeds), *_missing(variants))
    return Bundled(content, manifest, notes)


def _require_one_task(variants: Sequence[Variant]) -> None:
    first = variants[0]
    ports = [{each.name for each in graph_tensors(v.artifact.payload)[0]} for v in variants]
    for each, names in zip(variants, ports, strict=True):
        if each.artifact.task != first.artifact.task or names != ports[0]:
            raise UsageError(
                f"{each.source} is no variant of {first.source}: its task or inputs are others."
            )


def _named_apart(variants: Sequence[Variant]) -> list[Variant]:
    """Return variants of different names."""
    names = unique_names([each.name for each in variants])
    return [replace(each, name=name) for each, name in zip(variants, names, strict=True)]


def _manifest(
    variants: Sequence[Variant], options: BundleOptions, members: dict[str, bytes]
) -> dict[str, Any]:
    """Return the manifest, and put what it names into the members."""
    first, face = variants[0], variants[0].face
    golden = [golden_set(at, variants, members) for at in range(len(first.feeds))]
    names = unique_names([*(v.name for v in variants), *(file_stem(p) for p in options.engines)])
    engines = [
        engine_entry(path, name, variants, golden, members)
        for path, name in zip(options.engines, names[len(variants) :], strict=True)
    ]
    graphs = [graph_entry(each, face, members, is_packed=options.is_packed) for each in variants]
    licences = first.use.licences if first.use else ()
    return {
        "schema": SCHEMA,
        "name": options.name or first.name,
        "task": first.artifact.task,
        "kind": first.use.kind if first.use else None,
        "version": __version__,
        **face,
        "variants": [*engines, *graphs],
        "golden": golden,
        "machine": describe_machine(),
        "licences": [*licences, *options.licences],
    }


def _about_feeds(workload: Workload, given: FeedOptions) -> Sequence[str]:
    if isinstance(workload, TaskWorkload) or not given.has_no_files:
        return ()
    noise = "The golden inputs are seeded noise, not real inputs: --calibration names some."
    return (noise, *workload.notes[1:])


def _missing(variants: Sequence[Variant]) -> list[str]:
    """Return what the bundle lacks that would help an app."""
    notes = []
    if all(operators_at_run_time(each.artifact.payload)["int8"] for each in variants):
        notes.append(
            "There is no floating-point fallback: where integers go wrong, nothing runs. Name one"
            " with --fallback."
        )
    if variants[0].use is None:
        notes.append("The task does not say how an app uses its models: it feeds plain arrays.")
    return notes
