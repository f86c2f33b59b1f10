import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from aigc_compress.checkpoint import read_checkpoint, write_checkpoint
from aigc_compress.errors import UsageError
from aigc_compress.loading import load_artifact
from aigc_compress.models import data
from aigc_compress.models.cnn import CnnConfig
from aigc_compress.models.gan import DiscriminatorConfig, GanConfig
from aigc_compress.models.training import train_reference
from aigc_compress.models.training.base import average_into, epoch_order, one_cycle, seeded
from aigc_compress.models.training.cnn import CnnTrainer, CnnTraining
from aigc_compress.models.training.gan import GanTrainer, GanTraining
from aigc_compress.models.training.loop import RunOptions
from aigc_compress.models.training.reading import Reader
from aigc_compress.models.training.rnn import RnnTrainer, RnnTraining
from aigc_compress.models.training.run import load_training_config

CPU = torch.device("cpu")
TRAIN = [
    sys.executable,
    "-c",
    "from aigc_compress.cli import main; main()",
    "train",
    "rnn",
    *("--steps", "60", "--threads", "1", "--checkpoint-minutes", "0", "--device", "cpu"),
    *("--set", "model.hidden=16", "--set", "model.layers=1", "--set", "batch_size=4"),
    *("--set", "window=16", "--set", "validation_samples=320", "--set", "validate_every=20"),
]


def trainers(steps=1000, rate=1e-3, **models):
    images = data.calibration_images()
    return {
        "cnn": lambda: CnnTrainer(
            CnnTraining(
                model=CnnConfig(widths=(4,), blocks=(1,)),
                batch_size=8,
                precision="fp32",
                steps=steps,
                learning_rate=rate,
            ),
            device=CPU,
            images=images,
            **models,
        ),
        "gan": lambda: GanTrainer(
            GanTraining(
                model=GanConfig(latent=4, widths=(4, 4, 4)),
                discriminator=DiscriminatorConfig(widths=(4, 4, 4)),
                batch_size=8,
                precision="fp32",
                steps=steps,
                generator_rate=rate,
            ),
            device=CPU,
            images=images,
            **models,
        ),
        "rnn": lambda: RnnTrainer(
            RnnTraining.model_validate(
                {
                    "model": {"hidden": 8, "layers": 1},
                    "batch_size": 4,
                    "precision": "fp32",
                    "steps": steps,
                    "learning_rate": rate,
                }
            ),
            device=CPU,
            **models,
        ),
    }


def run(trainer, first, last):
    losses = []
    for index in range(first, last):
        with seeded(0, index + 1):
            losses.append({k: float(v) for k, v in trainer.step(index).items()})
    return losses


@pytest.mark.parametrize("name", ["cnn", "gan", "rnn"])
def test_state_carried_into_a_new_trainer_goes_on_with_the_same_numbers(name):
    make = trainers()[name]
    unbroken = make()
    run(unbroken, 0, 3)
    state = unbroken.state()
    copied = torch.load(saved(state), weights_only=True)
    wanted = run(unbroken, 3, 6)
    resumed = make()
    resumed.load_state(copied)
    assert run(resumed, 3, 6) == wanted


def saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("name", ["cnn", "gan", "rnn"])
def test_a_step_leaves_the_callers_random_state_alone(name):
    trainer = trainers()[name]()
    before = torch.get_rng_state()
    run(trainer, 0, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["cnn", "gan", "rnn"])
def test_a_trainer_that_starts_from_a_model_has_its_weights(name, tmp_path):
    first = trainers()[name]()
    run(first, 0, 2)
    checkpoint = first.checkpoint()
    second = trainers(start=kept(checkpoint, tmp_path))[name]()
    again = second.checkpoint()
    trained = [k for k in again.state_dict if "running" not in k and "num_batches" not in k]
    for key in trained:  # the GAN's statistics are measured anew
        assert torch.equal(again.state_dict[key], checkpoint.state_dict[key]), key
    if name == "gan":
        found = again.companions["discriminator"]["state_dict"]
        for key, value in checkpoint.companions["discriminator"]["state_dict"].items():
            assert torch.equal(found[key], value), key


def kept(checkpoint, folder):
    write_checkpoint(folder / "model.pt", checkpoint)
    return load_artifact(folder / "model.pt")


def test_a_model_of_another_kind_is_no_start(tmp_path):
    write_checkpoint(tmp_path / "gan.pt", trainers()["gan"]().checkpoint())
    options = RunOptions(tmp_path / "run")
    with pytest.raises(UsageError, match="is no rnn model"):
        train_reference(
            "rnn", RnnTraining(), options, start=tmp_path / "gan.pt", on_progress=lambda _: None
        )


def test_another_seed_gives_other_weights_and_another_order():
    def drawn(seed):
        with seeded(seed, 0):
            first = torch.randn(3)
        return *first.tolist(), *epoch_order(6, seed=seed, epoch=0).tolist()

    found = {drawn(seed) for seed in (0, 1, 2, 2**31 - 1)}
    assert len(found) == 4
    assert drawn(1) == drawn(1)


def test_hinge_and_standard_losses_follow_their_formulas():
    from aigc_compress.models.training.gan import _adversarial_loss, _discriminator_loss

    real, drawn = torch.tensor([0.3, -2.0]), torch.tensor([1.5, -0.2])
    p_real, p_drawn = torch.sigmoid(real), torch.sigmoid(drawn)
    standard = -(p_real.log().mean() + (1 - p_drawn).log().mean())
    assert _discriminator_loss(real, drawn, kind="standard") == pytest.approx(float(standard))
    assert _adversarial_loss(drawn, kind="standard") == pytest.approx(float(-p_drawn.log().mean()))
    hinge = (0.7 + 3.0) / 2 + (2.5 + 0.8) / 2
    assert _discriminator_loss(real, drawn, kind="hinge") == pytest.approx(hinge)
    assert _adversarial_loss(drawn, kind="hinge") == pytest.approx(-0.65)


def test_one_cycle_rises_to_one_and_falls_to_zero():
    factors = [one_cycle(i, 100, warm_up=0.25) for i in range(100)]
    assert max(factors) == pytest.approx(1.0, abs=1e-3)
    assert factors.index(max(factors)) == 24
    assert factors[-1] == pytest.approx(0.0)
    assert factors[24:] == sorted(factors[24:], reverse=True)


def test_averaged_weights_follow_the_recurrence():
    average, module = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    start, value = average.weight.item(), module.weight.item()
    average_into(average, module, decay=0.999, index=1)
    keep = 2 / 11
    assert average.weight.item() == pytest.approx(keep * start + (1 - keep) * value, rel=1e-5)


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_model_as_an_unbroken_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*TRAIN, "--folder", str(whole)], check=True, capture_output=True)

    process = subprocess.Popen([*TRAIN, "--folder", str(broken)], stderr=subprocess.DEVNULL)
    wait_for(broken / "checkpoint.pt", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "rnn.pt").exists()
    subprocess.run([*TRAIN, "--folder", str(broken)], check=True, capture_output=True)

    first, second = read_checkpoint(whole / "rnn.pt"), read_checkpoint(broken / "rnn.pt")
    assert first.state_dict.keys() == second.state_dict.keys()
    for name, value in first.state_dict.items():
        assert torch.equal(value, second.state_dict[name]), name
    cards = [json.loads((f / "rnn.json").read_text()) for f in (whole, broken)]
    assert cards[0]["test"] == cards[1]["test"]


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_130(tmp_path):
    process = subprocess.Popen(
        [*TRAIN, "--folder", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "checkpoint.pt", process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from there" in told
    assert "Traceback" not in told


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "training ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["cnn", "gan", "rnn"])
def test_a_student_with_a_teacher_goes_on_with_the_same_numbers(name, tmp_path):
    teacher = kept(trainers()[name]().checkpoint(), tmp_path)
    make = trainers(teacher=teacher)[name]
    unbroken = make()
    run(unbroken, 0, 3)
    copied = torch.load(saved(unbroken.state()), weights_only=True)
    wanted = run(unbroken, 3, 6)
    resumed = make()
    resumed.load_state(copied)
    assert run(resumed, 3, 6) == wanted


@pytest.mark.parametrize("name", ["cnn", "gan", "rnn"])
def test_a_student_gets_closer_to_its_teacher(name, tmp_path):
    torch.manual_seed(5)
    teacher = kept(trainers()[name]().checkpoint(), tmp_path)
    student = trainers(steps=30, rate=0.02, teacher=teacher)[name]()
    learned = student.modules["generator" if name == "gan" else "network"]
    torch.manual_seed(6)
    for parameter in learned.parameters():
        torch.nn.init.normal_(parameter, std=1.0 if name == "rnn" else 0.3)
    before = distance(name, learned, teacher.payload)
    run(student, 0, 30)
    assert distance(name, learned, teacher.payload) < 0.7 * before


def distance(name, student, teacher):
    torch.manual_seed(7)
    feeds = {
        "cnn": lambda: (torch.randn(16, 1, 28, 28),),
        "gan": lambda: (torch.randn(16, 4),),
        "rnn": lambda: (torch.randint(0, 40, (4, 16)), *teacher.initial_state(4)),
    }[name]()
    with torch.no_grad():
        outputs = [each.train(False)(*feeds) for each in (student, teacher)]
    student.train()
    student, teacher = (each[0] if name == "rnn" else each for each in outputs)
    return float((student - teacher).square().mean())


def test_training_that_rounds_goes_on_with_the_same_numbers_and_ends_in_floats(tmp_path):
    images = data.calibration_images()
    config = CnnTraining(
        model=CnnConfig(widths=(4,), blocks=(1,)), batch_size=8, precision="fp32", qat=True
    )

    def make():
        return CnnTrainer(config, device=CPU, images=images)

    unbroken = make()
    run(unbroken, 0, 3)
    copied = torch.load(saved(unbroken.state()), weights_only=True)
    wanted = run(unbroken, 3, 6)
    resumed = make()
    resumed.load_state(copied)
    assert run(resumed, 3, 6) == wanted
    made = kept(resumed.checkpoint(), tmp_path).payload
    assert type(made.stem[0]) is torch.nn.Conv2d


def test_distill_without_a_teacher_is_refused(tmp_path):
    config = RnnTraining.model_validate({"distill": {"weight": 0.5}})
    with pytest.raises(UsageError, match="no effect without a teacher"):
        train_reference("rnn", config, RunOptions(tmp_path / "run"), on_progress=lambda _: None)


def frozen_trainer(**settings):
    config = CnnTraining.model_validate(
        {
            "model": {"widths": (4,), "blocks": (1,)},
            "batch_size": 8,
            "precision": "fp32",
            "learning_rate": 0.1,
            **settings,
        }
    )
    return CnnTrainer(config, device=CPU, images=data.calibration_images())


def test_what_is_frozen_stands_still_for_its_steps_and_then_moves():
    trainer = frozen_trainer(freeze=["stem.*"], freeze_steps=3)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}

    def moved(first, last):
        for index in range(first, last):
            trainer.hold(index)
            run(trainer, index, index + 1)
        now = trainer.network.state_dict()
        return {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}

    assert moved(0, 3) == {"stages", "head"}  # nor do batch statistics of the stem move
    assert moved(3, 4) == {"stem", "stages", "head"}


def test_settings_of_freezing_without_effect_are_refused():
    with pytest.raises(UsageError, match="no parameter like trunk"):
        frozen_trainer(freeze=["trunk.*"])
    with pytest.raises(ValueError, match="no effect without freeze"):
        frozen_trainer(freeze_steps=3)


def test_two_networks_teach_each_other_and_go_on_with_the_same_numbers(tmp_path):
    def make(mutual):
        return frozen_trainer(mutual=mutual, steps=60)

    unbroken = make(1.0)
    run(unbroken, 0, 3)
    copied = torch.load(saved(unbroken.state()), weights_only=True)
    wanted = run(unbroken, 3, 40)
    resumed = make(1.0)
    resumed.load_state(copied)
    assert run(resumed, 3, 40) == wanted
    alone = make(1e-9)
    run(alone, 0, 40)

    def apart(trainer):
        images, _ = trainer._batch(0)
        with torch.no_grad():
            pair = [trainer.modules[name].eval()(images) for name in ("network", "peer")]
        return float((pair[0].softmax(-1) - pair[1].softmax(-1)).abs().sum(-1).mean())

    assert apart(unbroken) < apart(alone)
    start = kept(alone.checkpoint(), tmp_path)
    with pytest.raises(UsageError, match="leave the start out"):
        CnnTrainer(alone.config, device=CPU, images=data.calibration_images(), start=start)


@pytest.mark.parametrize("name", ["cnn", "gan", "rnn"])
def test_one_setting_of_distilling_leaves_the_others_as_they_were(name):
    first = {"cnn": "features", "gan": "pixels", "rnn": "written"}[name]
    whole = load_training_config(name).distill.model_dump()
    told = load_training_config(name, None, {f"distill.{first}": 0.5}).distill.model_dump()
    assert told == {**whole, first: 0.5}


def reader(teacher, streams, **more):
    return Reader(teacher, streams, piece=8, **more)


@pytest.mark.parametrize("keeps_features", [False, True])
def test_a_reader_tells_what_its_teacher_says_wherever_it_is_asked(keeps_features):
    torch.manual_seed(1)
    teacher = trainers()["rnn"]().network.eval()
    streams = torch.randint(0, 40, (4, 61))
    wanted, *_ = teacher(streams, *teacher.initial_state(4))
    asked = reader(teacher, streams, keeps_features=keeps_features)
    for start, stop in ((0, 5), (13, 29), (3, 11), (40, 60)):
        logits, features = asked.after(start, stop, contextlib.nullcontext())
        torch.testing.assert_close(logits, wanted[:, start:stop].detach(), atol=2e-3, rtol=2e-3)
        assert (features is not None) == keeps_features
    assert torch.equal(asked.streams, streams)


def test_a_teacher_writes_on_by_its_own_chances_and_by_the_seed():
    torch.manual_seed(1)
    teacher = trainers()["rnn"]().network.eval()
    torch.nn.init.normal_(teacher.head.weight, std=5.0)  # so that its chances are uneven
    streams = torch.randint(0, 40, (64, 20))

    def written(seed):
        made = reader(teacher, streams, written=100, seed=seed)
        logits, _ = made.after(0, 119, contextlib.nullcontext())
        return made.streams, logits

    (first, logits), (again, _), (other, _) = written(0), written(0), written(1)
    assert torch.equal(first, again)
    assert torch.equal(first[:, :20], streams)
    assert not torch.equal(first, other)
    with torch.no_grad():
        wanted, *_ = teacher(first[:, :-1], *teacher.initial_state(64))
    torch.testing.assert_close(logits, wanted, atol=2e-2, rtol=2e-3)
    # What was drawn is as likely as what is drawn from the same chances on average.
    log_chances = wanted[:, 19:].log_softmax(-1)
    told = log_chances.gather(-1, first[:, 20:, None]).mean()
    mean = (log_chances.exp() * log_chances).sum(-1).mean()
    assert abs(float(told - mean)) < 0.05
    assert float(mean) > -3  # far from even chances over all letters


def test_a_student_of_written_text_goes_on_with_the_same_numbers(tmp_path):
    teacher = kept(trainers()["rnn"]().checkpoint(), tmp_path)
    config = RnnTraining.model_validate(
        {
            "model": {"hidden": 8, "layers": 1},
            "batch_size": 512,
            "window": 64,
            "precision": "fp32",
            "distill": {"written": 0.05},
        }
    )

    def make():
        return RnnTrainer(config, device=CPU, teacher=teacher)

    unbroken = make()
    steps = unbroken._per_epoch
    run(unbroken, steps - 4, steps - 2)
    copied = torch.load(saved(unbroken.state()), weights_only=True)
    wanted = run(unbroken, steps - 2, steps + 1)
    resumed = make()
    resumed.load_state(copied)
    assert run(resumed, steps - 2, steps + 1) == wanted


def test_a_generator_that_imitates_alone_leaves_the_discriminator_be(tmp_path):
    teacher = kept(trainers()["gan"]().checkpoint(), tmp_path)
    config = GanTraining.model_validate(
        {
            "model": {"latent": 4, "widths": (4, 4, 4)},
            "discriminator": {"widths": (4, 4, 4)},
            "batch_size": 8,
            "precision": "fp32",
            "generator_rate": 0.01,
            "distill": {"adversarial": 0, "features": 0},
        }
    )
    student = GanTrainer(config, device=CPU, images=data.calibration_images(), teacher=teacher)
    before = {n: v.clone() for n, v in student.discriminator.state_dict().items()}
    losses = run(student, 0, 30)
    assert set(losses[0]) == {"pixels"}
    assert losses[-1]["pixels"] < losses[0]["pixels"]
    after = student.discriminator.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
