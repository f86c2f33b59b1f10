"""Outputs that cannot be written: what was there before stays."""

import os
import resource

import pytest
from conftest import assert_refused, files_in, fill, run_process, tiny_checkpoint

from aigc_compress.checkpoint import write_checkpoint


@pytest.mark.parametrize("verb", ["export", "quantize"])
def test_an_output_of_no_known_kind_is_refused(refuse, gan_pt, verb):
    assert "out.bin" in refuse(verb, gan_pt, "-o", "out.bin", code=2)


WRITERS = {
    "bench": ("bench", "cnn.pt"),
    "export": ("export", "cnn.pt"),
    "fetch": ("fetch", "cnn"),
    "quantize": ("quantize", "cnn.pt"),
    "sample a picture": ("sample", "gan.pt"),
    "sample a text": ("sample", "rnn.pt", "--prompt", "In the beginning", "--count", "3"),
}


@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_no_verb_writes_where_it_cannot(refuse, workplace, gan_pt, cnn_pt, rnn_pt, words):
    os.mkfifo(workplace / "pipe.onnx")
    (workplace / "folder.onnx").mkdir()
    assert "no plain file" in refuse(*words, "-o", "pipe.onnx", code=1)
    assert (workplace / "pipe.onnx").is_fifo()
    assert "it is a folder" in refuse(*words, "-o", "folder.onnx", code=1)
    assert "there is no folder gone" in refuse(*words, "-o", "gone/out.onnx", code=1)
    assert "Cannot write /proc" in refuse(*words, "-o", "/proc/out.onnx", code=1)


def test_the_source_is_never_overwritten(refuse, scores_onnx):
    assert "source itself" in refuse("quantize", scores_onnx, "-o", scores_onnx, code=2)


def test_a_full_disk_loses_nothing(full_disk, gan_pt, run_cli):
    (full_disk / "gan.onnx").write_bytes(b"what was here before")
    fill(full_disk)
    before = files_in(full_disk)
    ending = run_cli("export", gan_pt, "-o", full_disk / "gan.onnx")
    assert_refused(ending, 1)
    assert files_in(full_disk) == before


def test_a_checkpoint_on_a_full_disk_loses_nothing(full_disk):
    from aigc_compress.errors import OutputError

    (full_disk / "gan.pt").write_bytes(b"what was here before")
    fill(full_disk)
    before = files_in(full_disk)
    with pytest.raises(OutputError, match="space"):
        write_checkpoint(full_disk / "gan.pt", tiny_checkpoint("gan"))
    assert files_in(full_disk) == before


def test_a_limit_of_the_file_size_loses_nothing(workplace, gan_pt):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    (workplace / "grid.png").write_bytes(b"what was here before")
    before = files_in(workplace)
    ending = run_process("sample", gan_pt, "-o", "grid.png", cwd=workplace, preexec_fn=limit)
    assert_refused(ending, 1)
    assert files_in(workplace) == before


def test_fetch_does_not_overwrite_another_file(refuse, workplace):
    (workplace / "cnn.pt").write_bytes(b"mine")
    assert "--force" in refuse("fetch", "cnn", code=1)
