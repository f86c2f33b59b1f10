"""The folder of a site: what is written, and what is refused."""

import json
import lzma
import re

import pytest
from conftest import files_in, fill
from sites import doubling_bundle

from aigc_compress.errors import InputFileError, OutputError, UsageError
from aigc_compress.web import site, write_site

RUNTIME = {"vendor/ort.js": b"a", "vendor/ort-loader.js": b"b", "vendor/ort.wasm": b"c"}


@pytest.fixture
def doubling(workplace):
    """Make a bundle that the page knows no demo for."""
    return doubling_bundle(workplace)


@pytest.fixture
def no_npm(monkeypatch):
    """Put bytes in the place of ONNX Runtime Web."""
    monkeypatch.setattr(site, "runtime_files", lambda: dict(RUNTIME))


def test_a_site_holds_the_page_the_bundle_and_their_digests(doubling, no_npm, workplace):
    manifest, members = doubling
    folder, notes = write_site(manifest, members, workplace / "site")
    assert notes == ()
    index = json.loads((folder / "site.json").read_text())
    found = {path.relative_to(folder).as_posix(): sha for path, sha in files_in(folder).items()}
    del found["site.json"]
    assert found == {name: told["sha256"] for name, told in index["files"].items()}
    assert {*RUNTIME, "index.html", "app.js", "models/fast.onnx", "models/exact.onnx"} <= {*found}
    assert index["bundle"]["variants"][0]["model"] == "models/fast.onnx"
    assert (folder / "models/fast.onnx").read_bytes() == lzma.decompress(
        members["models/fast.onnx.xz"]
    )
    assert (folder / "golden/0/input-0.bin").read_bytes() == members["golden/0/input-0.bin"]


def test_the_same_bundle_gives_the_same_bytes_and_replaces_its_site(doubling, no_npm, workplace):
    folders = [workplace / "one", workplace / "two"]
    for folder in (*folders, folders[0]):
        write_site(*doubling, folder)
    one, two = ({p.relative_to(f): sha for p, sha in files_in(f).items()} for f in folders)
    assert one == two
    assert sorted(each.name for each in workplace.iterdir() if each.is_dir()) == ["one", "two"]


def test_a_site_that_is_written_again_keeps_nothing_of_the_old_one(doubling, no_npm, workplace):
    manifest, members = doubling
    write_site(manifest, members, workplace / "site")
    golden = [
        {**each, "outputs": {"exact": each["outputs"]["exact"]}} for each in manifest["golden"]
    ]
    less = {**manifest, "variants": manifest["variants"][1:], "golden": golden}
    write_site(less, members, workplace / "site")
    assert not (workplace / "site/models/fast.onnx").exists()


@pytest.mark.parametrize("name", ["notes.txt", "deep/er/notes.txt"])
@pytest.mark.parametrize("was_site", [True, False])
def test_a_folder_with_something_else_is_left_alone(doubling, no_npm, workplace, name, was_site):
    folder = workplace / "site"
    if was_site:
        write_site(*doubling, folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    before = files_in(workplace)
    with pytest.raises(OutputError, match=re.escape(name)):
        write_site(*doubling, folder)
    assert files_in(workplace) == before


def test_a_file_in_the_place_of_the_folder_is_refused(doubling, no_npm, workplace):
    with pytest.raises(OutputError, match="it is a file"):
        write_site(*doubling, workplace / "fast.onnx")


def test_an_empty_folder_is_filled(doubling, no_npm, workplace):
    (workplace / "site").mkdir()
    write_site(*doubling, workplace / "site")
    assert (workplace / "site/index.html").is_file()


def test_a_full_disk_leaves_nothing_behind(doubling, no_npm, full_disk):
    fill(full_disk)
    before = files_in(full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write_site(*doubling, full_disk / "site")
    assert files_in(full_disk) == before
    assert [each.name for each in full_disk.iterdir()] == ["ballast"]


def test_the_old_site_comes_back_where_the_new_one_cannot_take_its_place(
    doubling, no_npm, workplace, monkeypatch
):
    folder = workplace / "site"
    write_site(*doubling, folder)
    before = files_in(workplace)
    rename = site.Path.rename

    def refuse_new(path, target):
        if path.name == "new":
            raise OSError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(site.Path, "rename", refuse_new)
    with pytest.raises(OutputError, match="Permission denied"):
        write_site(*doubling, folder)
    assert files_in(workplace) == before


def test_engines_of_graphics_cards_are_left_out_and_named(doubling, no_npm, workplace):
    manifest, members = doubling
    engine = {**manifest["variants"][0], "name": "card", "engine": "trt", "model": "engines/card"}
    _, notes = write_site(
        {**manifest, "variants": [engine, *manifest["variants"]]}, members, workplace / "site"
    )
    assert "card" in notes[0]
    index = json.loads((workplace / "site/site.json").read_text())
    assert [each["name"] for each in index["bundle"]["variants"]] == ["fast", "exact"]
    with pytest.raises(UsageError, match="no ONNX graph"):
        write_site({**manifest, "variants": [engine]}, members, workplace / "other")


@pytest.mark.parametrize("name", ["models/gone.onnx", "../fast.onnx", "/etc/hostname"])
def test_a_member_that_is_missing_or_leads_out_is_refused(doubling, no_npm, workplace, name):
    manifest, members = doubling
    first = {**manifest["variants"][0], "model": name}
    held = members if "gone" in name else {**members, name: b"x"}
    with pytest.raises(InputFileError, match="has no member"):
        write_site({**manifest, "variants": [first]}, held, workplace / "site")
    assert not (workplace / "site").exists()


def test_the_page_names_no_other_server():
    told = {"http://www.w3.org/2000/svg", "http://localhost:8000"}
    for name, content in site._page_files().items():
        if name.endswith((".html", ".css", ".js")):
            assert {*re.findall(r"https?://[^\"'< ]+", content.decode())} <= told, name
