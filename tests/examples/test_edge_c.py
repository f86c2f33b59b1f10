"""The C program: built against what registries provide, run on bundles and on damaged ones."""

import importlib.util
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from aigc_compress.bundling import BundleOptions, make_bundle

FOLDER = Path(__file__).parents[2] / "examples" / "edge-c"


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """Build the program with sanitizers, in a folder of its own."""
    for tool in ("make", "cc", "apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    work = tmp_path_factory.mktemp("edge-c")
    for each in FOLDER.iterdir():
        if each.is_file() and each.name != "edge":
            shutil.copy(each, work)
    library = Path(importlib.util.find_spec("onnxruntime").origin).parent / "capi"
    found = next(library.glob("libonnxruntime.so.*"), None)
    if found is None:
        pytest.skip("this onnxruntime comes without libonnxruntime.so")
    fetched = subprocess.run(
        ["./fetch-deps.sh", "deps"], cwd=work, capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        pytest.skip(f"Debian's packages cannot be fetched: {fetched.stderr.strip()[-200:]}")
    flags = "CFLAGS=-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    command = ["make", "edge", f"ORT_LIB={found}", flags]
    built = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return work / "edge"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("gan", "cnn", "rnn"):
        made = make_bundle(
            [f"{name}-edge"], BundleOptions(fallback="cnn" if name == "cnn" else None)
        )
        (folder / f"{name}.aigc").write_bytes(made.content)
    return folder


@pytest.fixture
def unpacked(bundles, tmp_path):
    def unpack(name):
        with zipfile.ZipFile(bundles / f"{name}.aigc") as archive:
            archive.extractall(tmp_path / name)
        return tmp_path / name

    return unpack


def run(edge, *words):
    done = subprocess.run([edge, *map(str, words)], capture_output=True, text=True, check=False)
    assert "Sanitizer" not in done.stderr, done.stderr
    assert "runtime error" not in done.stderr, done.stderr
    return done


def change(folder, edit):
    """Let `edit` change the manifest of an unpacked bundle."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["gan", "cnn", "rnn"])
def test_golden_vectors_are_right_and_a_call_is_timed(edge, unpacked, name):
    done = run(edge, unpacked(name), 20)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(f"golden ok: {name}-edge, ")
    assert second.startswith(f"{name}-edge: ")
    assert "median of 20 calls" in second


def test_where_the_first_variant_differs_the_next_one_runs(edge, unpacked):
    folder = unpacked("cnn")
    recorded = folder / "golden/0/cnn-edge/output-0.bin"
    recorded.write_bytes(bytes(reversed(recorded.read_bytes())))
    done = run(edge, folder, 5)
    assert done.returncode == 0, done.stderr
    assert "golden ok: cnn, " in done.stdout
    assert "warning: cnn-edge is not used: its outputs agree" in done.stderr


def test_where_no_variant_is_right_it_says_so(edge, unpacked):
    folder = unpacked("gan")
    (folder / "models/gan-edge.onnx").write_bytes(b"no graph")
    done = run(edge, folder)
    assert done.returncode == 1
    assert "nothing in" in done.stderr
    assert done.stdout == ""


DAMAGES = {
    "another format": lambda m: m.update(schema="aigc-compress/bundle/9"),
    "no variants": lambda m: m.update(variants=[]),
    "a variant without a name": lambda m: m["variants"][0].pop("name"),
    "another engine": lambda m: m["variants"][0].update(engine="trt"),
    "a model elsewhere": lambda m: m["variants"][0].update(model="../../etc/passwd"),
    "a member elsewhere": lambda m: m["golden"][0]["inputs"][0].update(member="/etc/passwd"),
    "a shape that overflows": lambda m: m["golden"][0]["inputs"][0].update(shape=[2**62, 4]),
    "a shape of another sign": lambda m: m["golden"][0]["inputs"][0].update(shape=[-1, 100]),
    "too many axes": lambda m: m["golden"][0]["inputs"][0].update(shape=[1] * 100),
    "a dtype of its own": lambda m: m["inputs"][0].update(dtype="complex64"),
    "no golden outputs": lambda m: m["golden"][0].update(outputs={}),
    "an input of another name": lambda m: m["inputs"][0].update(name="other"),
    "numbers for names": lambda m: m["variants"][0].update(engine=1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_manifest_that_lies_ends_in_a_message_and_no_crash(edge, unpacked, damage):
    folder = unpacked("gan")
    change(folder, DAMAGES[damage])
    done = run(edge, folder, 5)
    assert done.returncode == 1
    assert "error: " in done.stderr


def test_files_that_are_cut_or_missing_end_in_a_message(edge, unpacked, tmp_path):
    folder = unpacked("gan")
    member = folder / "golden/0/input-0.bin"
    member.write_bytes(member.read_bytes()[:-1])
    assert "does not hold the 400 bytes" in run(edge, folder, 5).stderr
    (folder / "manifest.json").write_text("{")
    assert run(edge, folder).returncode == 1
    assert run(edge, tmp_path / "nowhere").returncode == 1


@pytest.mark.parametrize("words", [(), ("a", "0"), ("a", "many"), ("a", "1", "b")])
def test_wrong_use_is_told(edge, words):
    done = run(edge, *words)
    assert done.returncode == 2
    assert "usage: edge" in done.stderr
