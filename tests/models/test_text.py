import numpy as np
import pytest

from aigc_compress.errors import UsageError
from aigc_compress.models.tasks.rnn import WriteText
from aigc_compress.models.text import Writer

TASK = WriteText({"alphabet": "abc", "cell": "gru", "layers": 1, "hidden": 2})


class NextLetter:
    """Gives its logits to the letter after the last one, and counts steps in its state."""

    def run(self, feeds):
        tokens = feeds["tokens"]
        logits = np.zeros((*tokens.shape, 3), np.float32)
        np.put_along_axis(logits, ((tokens + 1) % 3)[..., None], 5.0, -1)
        return {"logits": logits, "h_out": feeds["h"] + tokens.shape[1]}


def test_greedy_writing_follows_the_likeliest_character():
    assert "".join(Writer(NextLetter(), TASK).write("ab", 5, temperature=0)) == "cabca"


def test_top_k_of_one_is_greedy_at_any_temperature():
    writer = Writer(NextLetter(), TASK)
    assert "".join(writer.write("a", 6, temperature=9.0, top_k=1)) == "bcabca"


def test_the_same_seed_writes_the_same_text():
    writer = Writer(NextLetter(), TASK)
    texts = {"".join(writer.write("a", 40, temperature=5.0, seed=s)) for s in (3, 3, 4)}
    assert len(texts) == 2


@pytest.mark.parametrize("prompt", ["", "axb"])
def test_a_prompt_that_the_model_cannot_read_is_refused(prompt):
    with pytest.raises(UsageError, match="prompt"):
        next(Writer(NextLetter(), TASK).write(prompt, 1))


class Uniform:
    def run(self, feeds):
        return {"logits": np.zeros((*feeds["tokens"].shape, 3), np.float32), "h_out": feeds["h"]}


def test_a_model_that_knows_nothing_needs_log2_of_the_alphabet_in_bits():
    task = WriteText(
        {"alphabet": "".join(sorted(set(everything()))), "cell": "gru", "layers": 1, "hidden": 2}
    )

    class Flat(Uniform):
        def run(self, feeds):
            shape = (*feeds["tokens"].shape, len(task.alphabet))
            return {"logits": np.zeros(shape, np.float32), "h_out": feeds["h"]}

    quality = task.evaluate(Flat(), split="validation", samples=3200)
    assert quality.value == pytest.approx(np.log2(63))
    assert quality.samples == 3200


def everything():
    from aigc_compress.models import data

    return data.embedded_text()
