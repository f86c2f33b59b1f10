import json

import pytest
from conftest import tiny_checkpoint

from aigc_compress.checkpoint import write_checkpoint
from aigc_compress.loading import load_artifact
from aigc_compress.models.gan import GanConfig
from aigc_compress.models.registry import KINDS


def test_prune_writes_a_smaller_model_and_tells_the_widths(run_cli, gan_pt):
    done = run_cli("prune", gan_pt, "--ratio", "0.3", "--multiple", "1", "--least", "1")
    assert done.code == 0, done.stderr
    assert "upsample.0.weight" in done.stdout
    assert "stays whole" in done.stderr
    made = load_artifact("gan.pruned.pt")
    before = load_artifact(gan_pt)
    counts = [sum(p.numel() for p in a.payload.parameters()) for a in (made, before)]
    assert counts[0] < counts[1]


def test_prune_shows_the_widths_that_it_measured(run_cli, workplace):
    wide = GanConfig(latent=4, widths=(64, 64, 64))  # so wide that the clock tells widths apart
    state = KINDS["gan"].module(wide).state_dict()
    fields = {"config": wide.model_dump(mode="json"), "state_dict": state}
    write_checkpoint(workplace / "gan.pt", tiny_checkpoint("gan", **fields))
    options = ("--ratio", "0.3", "--multiple", "measured", "--least", "1")
    done = run_cli("prune", "gan.pt", *options)
    assert done.code == 0, done.stderr
    assert "worth stopping at" in done.stdout
    assert "project.0.weight has no measured widths" in done.stderr


def test_prune_prints_one_document(run_cli, text_pt):
    done = run_cli(
        "prune",
        text_pt,
        "-o",
        "small.pt",
        "--target-macs",
        "0.8",
        *("--multiple", "1", "--least", "1", "--json"),
    )
    document = json.loads(done.stdout)
    assert document["schema"] == "aigc-compress/prune/1"
    assert document["macs"][1] <= 0.8 * document["macs"][0]
    assert run_cli("export", "small.pt").code == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "exactly one"),
        (("--ratio", "0.5", "--target-macs", "0.5"), "exactly one"),
        (("--ratio", "1.5"), "less than 1"),
        (("--ratio", "0.5", "--importance", "luck"), "importance"),
        (("--ratio", "0.5", "--multiple", "0"), "multiple"),
        (("--ratio", "0.5", "--multiple", "guessed"), "measured"),
        (("--ratio", "0.5", "-o", "model.onnx"), "must end in .pt"),
        (("--ratio", "0.5", "-o", "gan.pt"), "is the source itself"),
    ],
)
def test_bad_requests_are_refused(refuse, gan_pt, options, told):
    assert told in refuse("prune", "gan.pt", *options, code=2)


def test_a_graph_is_no_model_to_prune(refuse, scores_onnx):
    assert "needs the torch model" in refuse("prune", "scores.onnx", "--ratio", "0.5", code=2)


def test_a_target_out_of_reach_leaves_nothing(refuse, gan_pt):
    assert "out of reach" in refuse("prune", "gan.pt", "--target-macs", "0.01", code=1)
