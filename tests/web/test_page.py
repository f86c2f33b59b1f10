"""The page of a site in a real browser."""

import json
import re

import numpy as np
import pytest
from sites import doubling_bundle, parts_of, visit, written

from aigc_compress.bundling import BundleOptions, make_bundle


@pytest.fixture
def doubling(workplace):
    """Make a bundle that the page knows no demo for."""
    return doubling_bundle(workplace)


@pytest.fixture(scope="module")
def reference_site(tmp_path_factory):
    """Write the site of a reference and its edge model, once."""
    made = {}

    def write(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            content = make_bundle([f"{name}-edge"], BundleOptions(fallback=name)).content
            made[name] = written(*parts_of(content, folder), folder / "site")
        return made[name]

    return write


def expect_references(seen, name):
    """Check what all pages of references have in common."""
    proofs = seen.texts(".proof")
    assert len(proofs) == 2
    for proof in proofs:
        assert re.match(r"Verified here: (\d+ dB|equal in every bit) \(needs \d+", proof), proof
        assert "SHA-256 matches" in proof
    assert re.search(r"1/\d+ of the size,\d+\.\d times the speed", seen.texts("h1")[0])
    times = [float(each) for each in seen.texts(".card dd:has(+ dt) .large")[::2]]
    assert all(each > 0 for each in times)
    labelled = "() => [...document.querySelectorAll('input')].every((each) => each.labels.length)"
    assert seen.page.evaluate(labelled)
    assert name in seen.page.title()


def expect_images(seen):
    page = seen.page
    differ = """(canvas) => new Set(
        canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size"""
    grids = page.locator("canvas.grid")
    assert grids.count() == 2
    for at in range(2):
        assert grids.nth(at).evaluate(differ) > 100  # grey values of clothes
    picture = "(canvas) => canvas.toDataURL()"
    before = [grids.nth(at).evaluate(picture) for at in range(2)]
    page.get_by_role("button", name="New latents").click()
    page.get_by_role("status").filter(has_text="images drawn from seed").wait_for()
    seen.until(lambda: all(grids.nth(at).evaluate(picture) != before[at] for at in range(2)))
    stage = page.locator("canvas.stage").first
    straight = stage.evaluate(picture)
    page.get_by_label("Direction 1").fill("9")
    seen.until(lambda: stage.evaluate(picture) != straight)


def expect_classes(seen):
    bars = seen.page.locator(".bars")
    assert [bars.nth(at).locator("li").count() for at in range(2)] == [5, 5]
    seen.page.get_by_role("button", name="Clear").click()
    pad = seen.page.locator("canvas.pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    seen.page.mouse.move(box["x"] + 40, box["y"] + 40)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + 160, box["y"] + 160, steps=5)
    seen.page.mouse.up()
    lit = """(canvas) => canvas.getContext("2d")
        .getImageData(0, 0, canvas.width, canvas.height)
        .data.some((each, at) => at % 4 < 3 && each > 200)"""
    seen.until(lambda: seen.page.locator("canvas.seen").evaluate(lit))


def expect_text(seen):
    page = seen.page
    page.get_by_label("Characters").fill("60")
    page.get_by_role("button", name="Write").click()
    page.get_by_role("status").filter(has_text="wrote 60 characters").wait_for(timeout=30_000)
    for text in seen.texts(".paper"):
        assert text.startswith("In the beginning")
        assert len(text) == len("In the beginning") + 60
    first = seen.texts(".paper")
    page.get_by_role("button", name="Write").click()
    seen.until(lambda: seen.texts(".paper") == first)  # the same seed
    page.get_by_label("Prompt").fill("Ä")
    page.get_by_role("button", name="Write").click()
    page.get_by_role("alert").filter(has_text="does not know").wait_for()
    page.get_by_label("Prompt").fill("And ")
    page.get_by_label("Characters").fill("5000")
    page.get_by_role("button", name="Write").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("status").filter(has_text=re.compile(r"wrote \d{1,3} char")).wait_for()


EXPECTED = {"gan": expect_images, "cnn": expect_classes, "rnn": expect_text}


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_page_of_a_reference_proves_times_and_shows_it(reference_site, name, width):
    with visit(reference_site(name), width=width) as seen:
        seen.open()
        expect_references(seen, name)
        EXPECTED[name](seen)
        assert seen.beyond <= 0
        assert seen.faults == []
        assert seen.outside == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_sees_in_an_example_what_the_model_said_of_it(reference_site):
    folder = reference_site("cnn")
    bundle = json.loads((folder / "site.json").read_text())["bundle"]
    with visit(folder) as seen:
        seen.open()
        seen.page.locator(".thumbnail").last.click()
        seen.page.get_by_role("status").filter(has_text="%").wait_for()
        shown = seen.texts(".bars li:first-child")
    for variant, text in zip(bundle["variants"], shown, strict=True):
        stored = bundle["golden"][-1]["outputs"][variant["name"]][0]
        raw = np.frombuffer((folder / stored["member"]).read_bytes(), "<f4")
        logits = raw.reshape(stored["shape"])[-1].astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum()
        best = int(shares.argmax())
        assert text.startswith(bundle["processing"]["labels"][best])
        told = float(re.search(r"([\d.]+) %", text)[1])
        # One digit is shown; in integers, a rounding may flip.
        tolerance = 1 if variant["precision"] == "int8" else 0.06
        assert told == pytest.approx(100 * shares[best], abs=tolerance)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(("wish", "button"), [("reduce", "Play"), ("no-preference", "Pause")])
def test_nothing_moves_by_itself_for_those_who_wish_so(reference_site, wish, button):
    with visit(reference_site("gan"), reduced_motion=wish) as seen:
        seen.open()
        seen.page.get_by_role(
            "heading", name="From one seed to another"
        ).scroll_into_view_if_needed()
        seen.page.get_by_label("Position").scroll_into_view_if_needed()
        seen.page.get_by_role("button", name=re.compile("Pla|Pau")).scroll_into_view_if_needed()
        seen.page.mouse.wheel(0, 2000)
        seen.page.get_by_role("button", name=button, exact=True).wait_for(timeout=5000)


@pytest.mark.browser
def test_a_bundle_of_no_known_kind_runs_its_golden_vectors(doubling, workplace):
    folder = written(*doubling, workplace / "site")
    with visit(folder, width=400) as seen:
        seen.open()
        assert seen.texts(".ports b") == ["x", "y"]
        assert all(each.startswith("Set 1: y (") for each in seen.texts(".results li:first-child"))
        assert len(seen.texts(".results")) == 2
        assert "equal in every bit" in seen.texts(".proof")[0]
        assert seen.beyond <= 0
        assert seen.faults == []
        assert seen.outside == []


@pytest.mark.browser
def test_a_damaged_model_is_not_run_and_the_other_one_is(doubling, workplace):
    folder = written(*doubling, workplace / "site")
    model = folder / "models/fast.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with visit(folder) as seen:
        seen.open()
        first, second = seen.texts(".proof")
        assert "models/fast.onnx is damaged" in first
        assert second.startswith("Verified here")
        assert len(seen.texts(".results")) == 1


@pytest.mark.browser
def test_a_model_that_gives_something_else_here_is_not_used(doubling, workplace):
    manifest, members = doubling
    name = manifest["golden"][0]["outputs"]["fast"][0]["member"]
    other = np.frombuffer(members[name], "<f4") * np.float32(1.1)
    folder = written(manifest, {**members, name: other.tobytes()}, workplace / "site")
    with visit(folder) as seen:
        seen.open()
        wrong, right = seen.texts(".proof")
        # The recorded outputs are 1.1 times those found: 20 log10(1.1 / 0.1) dB.
        assert wrong.startswith("Wrong here: 21 dB (needs 60)")
        assert right.startswith("Verified here")
        assert seen.faults == []
