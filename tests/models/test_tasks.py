import base64
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_compress.api import judge
from aigc_compress.models import data
from aigc_compress.models.registry import weights_path
from aigc_compress.models.tasks.cnn import ClassifyClothes
from aigc_compress.models.tasks.features import distance, load_module
from aigc_compress.models.tasks.gan import DrawClothes
from aigc_compress.models.tasks.paired import compare_images
from aigc_compress.models.tasks.rnn import WriteText
from aigc_compress.workload import TaskWorkload


class Logits:
    """Gives its rows one after the other, whatever the images."""

    def __init__(self, rows):
        self.rows, self.at = rows, 0

    def run(self, feeds):
        start, self.at = self.at, self.at + len(feeds["image"])
        return {"logits": self.rows[start : self.at]}


def random_logits(count, seed):
    return np.random.default_rng(seed).normal(size=(count, 10)).astype(np.float32) * 2


def evaluate_cnn(rows, reference=None):
    task = ClassifyClothes({})
    other = None if reference is None else Logits(reference)
    return task.evaluate(Logits(rows), split="test", samples=len(rows), reference=other)


def test_top_5_counts_labels_among_the_five_largest_logits():
    rows = random_logits(250, 0)
    pairs = zip(rows, data.images("test").labels[:250], strict=True)
    hits = [label in sorted(range(10), key=row.__getitem__)[5:] for row, label in pairs]
    quality = evaluate_cnn(rows)
    assert quality.details["top_5_percent"]["value"] == pytest.approx(100 * sum(hits) / 250)
    assert quality.details["top_1_percent"]["value"] == pytest.approx(quality.value)
    assert quality.details["top_5_percent"]["samples"] == 250


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_calibration_error_is_the_gap_between_confidence_and_accuracy_in_15_bins(scale):
    rows = np.abs(random_logits(300, 1)) * np.float32(scale)  # 0.05: all logits lie in [0, 1]
    labels = data.images("test").labels[:300]
    bins = [[] for _ in range(15)]
    for row, label in zip(rows.astype(float), labels, strict=True):
        confidence = math.exp(max(row)) / sum(math.exp(each) for each in row)
        bins[math.ceil(confidence * 15) - 1].append((confidence, row.argmax() == label))
    gaps = [abs(sum(c - hit for c, hit in members)) for members in bins]
    found = evaluate_cnn(rows).details["calibration_error_percent"]
    assert found["value"] == pytest.approx(100 * sum(gaps) / 300, rel=1e-4)  # float32 confidences
    assert found["higher_is_better"] is False


def test_agreement_counts_the_same_class_and_needs_another_runner_as_reference():
    rows, others = random_logits(200, 2), random_logits(200, 3)
    mixed = np.where(np.arange(200)[:, None] < 150, rows, others)
    pairs = zip(rows[150:], others[150:], strict=True)
    same = 150 + sum(a.argmax() == b.argmax() for a, b in pairs)
    told = evaluate_cnn(mixed, rows).details["agreement_with_fp32_percent"]
    assert told["value"] == pytest.approx(same / 2)
    assert told["low"] < told["value"] < told["high"]
    runner = Logits(rows)
    alone = ClassifyClothes({}).evaluate(runner, split="test", samples=200, reference=runner)
    assert "agreement_with_fp32_percent" not in alone.details


def test_logits_that_are_not_finite_have_no_calibration_error():
    rows = random_logits(100, 4)
    rows[3] = np.nan
    details = evaluate_cnn(rows).details
    assert details["calibration_error_percent"]["value"] is None
    json.dumps(details, allow_nan=False)


class Painter:
    """Draws smooth pictures from the latents; `shift` is added to every pixel."""

    def __init__(self, shift=0.0, name="image"):
        self.shift, self.name = np.float32(shift), name
        self.weights = np.random.default_rng(5).normal(size=(100, 784)).astype(np.float32)

    def run(self, feeds):
        images = np.tanh(feeds["z"] @ self.weights / 10).reshape(-1, 1, 28, 28)
        return {self.name: images * np.float32(0.5) + self.shift}


def test_a_constant_shift_gives_its_psnr_on_the_same_latents():
    task, reference = DrawClothes({"latent": 100}), Painter()
    quality = task.evaluate(Painter(0.1), split="test", samples=60, reference=reference)
    paired = quality.details["paired_psnr_db"]
    # float32 pixels around 0.5 hold a shift of 0.1 to six digits
    assert paired["value"] == pytest.approx(20 * math.log10(2 / 0.1), abs=1e-3)
    assert (paired["samples"], paired["higher_is_better"]) == (60, True)
    assert quality.details["coverage_images"] == 60
    assert not any("fid" in name.lower().split("_") for name in quality.details)
    alone = task.evaluate(reference, split="test", samples=60, reference=reference)
    assert not any(name.startswith("paired") for name in alone.details)
    assert set(alone.details) < set(quality.details)


def test_kid_is_the_mean_over_halves_that_every_runner_shares_and_needs_no_details():
    task = DrawClothes({"latent": 100})
    ask = {"split": "test", "samples": 60, "with_details": False}
    plain, shifted = (task.evaluate(Painter(by), **ask) for by in (0.0, 0.02))
    assert plain.details == shifted.details == {}
    images = [each.run(task.feeds(60, seed=0))["image"] for each in (Painter(), Painter(0.02))]
    halves = [np.array(distance(each, "test", seed=0).resamples) for each in images]
    assert halves[0].shape == halves[1].shape == (50,)
    change = halves[1] - halves[0]
    assert change.std() < 0.5 * halves[0].std()  # the same halves: what they share falls out
    assert shifted.value != plain.value
    whole = task.evaluate(Painter(), split="test", samples=60)
    assert (whole.value, whole.spread) == (plain.value, plain.spread)


def plain_ssim(x, y):
    """SSIM of one pair (28, 28): a Gaussian window of 11 x 11 on every pixel, edges mirrored."""
    x, y = (np.pad(each, 5, mode="reflect") for each in (x, y))
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for row in range(28):
        for column in range(28):
            a, b = (each[row : row + 11, column : column + 11] for each in (x, y))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * a**2).sum() - ma**2, (weights * b**2).sum() - mb**2
            cov = (weights * a * b).sum() - ma * mb
            top = (2 * ma * mb + c1) * (2 * cov + c2)
            values.append(top / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(values)


def test_ssim_and_feature_distance_agree_with_their_formulas():
    real = data.to_unit_range(data.images("test").pixels[:4])
    noise = np.random.default_rng(0).normal(size=real.shape).astype(np.float32)
    other = np.clip(real + 0.2 * noise, -1, 1)
    found = compare_images(real, other)
    pairs = zip(real[:, 0].astype(float), other[:, 0].astype(float), strict=True)
    # float32 variances as differences of squares lose a few digits
    wanted = np.mean([plain_ssim(x, y) for x, y in pairs])
    assert found["paired_ssim"]["value"] == pytest.approx(wanted, abs=1e-3)
    network = load_module(weights_path("cnn"))
    with torch.inference_mode():
        a, b = (network.features(torch.from_numpy(each)).double() for each in (real, other))
    cosines = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    distance = found["paired_feature_cosine_distance"]
    assert distance["value"] == pytest.approx(1 - float(cosines.mean()), rel=1e-4)
    assert distance["higher_is_better"] is False


def test_equal_pictures_count_as_200_db_and_pictures_of_nan_as_unknown():
    real = data.to_unit_range(data.images("test").pixels[:2])
    equal = compare_images(real, real.copy())
    assert equal["paired_psnr_db"]["value"] == 200
    assert equal["paired_ssim"]["value"] == pytest.approx(1)
    assert equal["paired_feature_cosine_distance"]["value"] == pytest.approx(0, abs=1e-12)
    broken = compare_images(real, np.full_like(real, np.nan))
    assert {each["value"] for each in broken.values()} == {None}


ALPHABET = "".join(sorted(set(data.embedded_text())))


class Counter:
    """Its state c counts characters n, h is n (bias + slope n); it expects the same letter again.

    Where the letter's index is a multiple of `wrong_every`, it expects the first letter instead.
    """

    def __init__(self, bias=1.0, slope=0.0, wrong_every=0):
        self.bias, self.slope, self.wrong_every = bias, slope, wrong_every

    def run(self, feeds):
        tokens = feeds["tokens"]
        expected = tokens.copy()
        if self.wrong_every:
            expected[tokens % self.wrong_every == 0] = 0
        logits = np.eye(len(ALPHABET), dtype=np.float32)[expected] * 3
        n = feeds["c"] + np.float32(tokens.shape[1])
        return {
            "logits": logits,
            "h_out": n * np.float32(self.bias) + self.slope * n**2,
            "c_out": n,
        }


def rnn_task(alphabet=ALPHABET):
    return WriteText({"alphabet": alphabet, "cell": "lstm", "layers": 2, "hidden": 3})


def drift(candidate, samples=32 * 300):
    quality = rnn_task().evaluate(candidate, split="test", samples=samples, reference=Counter())
    return quality.details["state_drift"]


def test_a_constant_share_of_error_in_the_state_is_told_and_does_not_grow():
    told = drift(Counter(bias=1.5))
    assert [each["step"] for each in told["by_step"]] == [1, 16, 64, 256, 300]
    assert {each["relative_difference"] for each in told["by_step"]} == {0.5}
    assert (told["value"], told["samples"], told["grows"]) == (0.5, 32, False)


def test_an_error_that_piles_up_grows():
    told = drift(Counter(slope=1 / 1024))
    for each in told["by_step"]:
        assert each["relative_difference"] == pytest.approx(each["step"] / 1024)
    assert told["grows"] is True


def test_a_single_step_cannot_tell_growth_and_nan_is_unknown():
    assert drift(Counter(bias=1.5), samples=32)["grows"] is None
    broken = drift(Counter(bias=float("nan")))
    assert broken["value"] is broken["grows"] is None
    json.dumps(broken, allow_nan=False)


def test_agreement_on_the_next_character_is_the_share_of_letters():
    length = 200
    task = rnn_task()
    tokens = task.encode(data.text("test"))
    stride = (len(tokens) - 1) // 32
    read = np.stack([tokens[i * stride : i * stride + length] for i in range(32)])
    share = 100 * np.mean((read % 7 != 0) | (read == 0))
    candidate = Counter(wrong_every=7)
    quality = task.evaluate(candidate, split="test", samples=32 * length, reference=Counter())
    told = quality.details["agreement_with_fp32_percent"]
    assert told["value"] == pytest.approx(share)
    assert told["low"] < told["value"] < told["high"] <= 100
    assert told["samples"] == 32 * length
    assert task.evaluate(candidate, split="test", samples=3200).details == {}


def test_the_gan_shows_64_drawings_in_a_grid():
    task = DrawClothes({"latent": 100})
    exhibit = task.exhibit(Painter(), seed=0)
    assert exhibit.kind == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(exhibit.data))))
    assert picture.shape == (8 * 30 * 2, 8 * 30 * 2)
    drawn = Painter().run(task.feeds(64, seed=0))["image"]
    ninth = picture[60:120:2, 0:60:2][1:-1, 1:-1]  # the first of the second row, without its frame
    assert np.array_equal(ninth, np.rint((drawn[8, 0] + 1) * 127.5))


def test_pixels_of_nan_are_shown_black():
    exhibit = DrawClothes({"latent": 100}).exhibit(Painter(float("nan")))
    assert not np.asarray(Image.open(io.BytesIO(base64.b64decode(exhibit.data)))).any()


def test_the_rnn_shows_400_characters_after_its_prompt():
    task = rnn_task()
    exhibit = task.exhibit(Counter(), seed=0)
    assert exhibit.kind == "text/plain"
    assert exhibit.data.startswith("In the beginning")
    assert len(exhibit.data) == len("In the beginning") + 400
    assert exhibit == task.exhibit(Counter(), seed=0)
    assert exhibit != task.exhibit(Counter(), seed=1)


class Mute:
    """Has outputs of other names."""

    def run(self, feeds):
        return {"other": np.zeros(1, np.float32)}


class Babble(Counter):
    """Its logits are NaN."""

    def run(self, feeds):
        outputs = super().run(feeds)
        return {**outputs, "logits": outputs["logits"] * np.float32("nan")}


@pytest.mark.parametrize(
    ("task", "runner"),
    [
        (DrawClothes({"latent": 100}), Painter(name="picture")),
        (rnn_task(), Mute()),
        (rnn_task(), Babble()),
        (rnn_task("abc"), Counter()),
        (ClassifyClothes({}), Logits(np.zeros((1, 10), np.float32))),
    ],
)
def test_what_cannot_be_shown_has_no_exhibit(task, runner):
    assert task.exhibit(runner, seed=0) is None


def test_judge_compares_with_the_first_runner_and_shows_only_when_asked():
    workload = TaskWorkload(rnn_task())
    runners = [Counter(), Counter(bias=1.5)]
    plain = judge(runners, [workload] * 2, samples=3200, budget=None, seed=0)
    assert [judgement.exhibit for judgement in plain] == [None, None]
    assert "state_drift" not in plain[0].quality.details
    assert plain[1].quality.details["state_drift"]["value"] == 0.5
    shown = judge(runners, [workload] * 2, samples=3200, budget=None, seed=0, with_exhibit=True)
    documents = [judgement.document()["exhibit"] for judgement in shown]
    assert documents[0]["kind"] == "text/plain"
    assert documents[0] == documents[1]  # the same logits write the same text
