"""Each rule on curves made to meet it, on curves made to miss it narrowly, and what each finding leads to."""

import math
import shlex
from pathlib import Path

import pytest

import convsmith
from convsmith.cli import verb_parser
from convsmith.config import RunConfig, flag_layer, merge, preset_layer, presets, validate
from convsmith.data.sources import ARRAYS
from convsmith.nets.build import build
from convsmith.report import advice, sections
from convsmith.report.diagnosis import (
    DIVERGED,
    NO_FAULT,
    RULES,
    TOO_SHORT,
    Course,
    Finding,
    TrainAccuracy,
    course,
    diagnose,
    not_judged,
    standard_error,
)
from convsmith.report.inputs import read_inputs
from convsmith.verbs.flags import read_settings

GUESSING = math.log(10)


def curves(train_loss, train_accuracy, val_loss, val_accuracy):
    columns = zip(train_loss, train_accuracy, val_loss, val_accuracy, strict=True)
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return [{"epoch": at, **dict(zip(names, row, strict=True))} for at, row in enumerate(columns, start=1)]


def run(rows, train_accuracy=0.98, **changes):
    """A course of these rows; the best epoch is the one with the highest validation accuracy."""
    best = max(rows, key=lambda row: row["val_accuracy"])["epoch"]
    train = None if train_accuracy is None else TrainAccuracy(train_accuracy, 1000, "of 1,000 training images")
    return Course(**({"rows": rows, "best_epoch": best, "classes": 10, "val_images": 2000, "train": train} | changes))


def named(rows, train_accuracy=0.9, **changes):
    return [finding.name for finding in diagnose(run(rows, train_accuracy, **changes))]


FINE = curves(
    [1, 0.3, 0.1, 0.09, 0.08], [0.7, 0.9, 0.97, 0.98, 0.98], [0.8, 0.3, 0.1, 0.1, 0.1], [0.7, 0.9, 0.97, 0.96, 0.965]
)


def test_a_sound_run_has_no_fault_and_a_short_one_no_verdict():
    assert named(FINE, 0.99) == [NO_FAULT]
    assert named(FINE[:2]) == [TOO_SHORT]
    assert "2 of the 3" in diagnose(run(FINE[:2]))[0].evidence


def test_overfitting_by_a_rising_loss():
    rows = curves([1, 0.5, 0.3, 0.2], [0.7, 0.8, 0.9, 0.9], [0.9, 0.6, 0.65, 0.9], [0.7, 0.8, 0.85, 0.86])
    assert named(rows, None) == ["overfitting"]
    assert "from 0.600 in epoch 2 to 0.900" in diagnose(run(rows))[0].evidence
    rows[-1]["val_loss"] = 0.6 * 1.1  # not above ten percent
    assert "overfitting" not in named(rows, None)


def test_overfitting_by_a_gap_needs_more_images_than_few():
    rows = curves([1, 0.3, 0.1], [0.7, 0.9, 0.9], [0.9, 0.6, 0.6], [0.7, 0.8, 0.9])
    assert "overfitting" in named(rows, 0.99)
    assert "overfitting" not in named(rows, 0.92)
    assert 3 * standard_error(0.9, 50) > 0.09
    assert "overfitting" not in named(rows, 0.99, val_images=50)


def test_underfitting_but_not_while_it_still_improves():
    flat = curves([1.5] * 6, [0.5] * 6, [1.4] * 6, [0.5, 0.55, 0.56, 0.55, 0.55, 0.55])
    assert named(flat, 0.56) == ["underfitting"]
    assert named(flat, 0.96) == ["overfitting"]
    falling = curves([1.5, 1.4, 1.3, 1.2], [0.4] * 4, [1.4, 1.3, 1.2, 1.1], [0.4, 0.5, 0.55, 0.6])
    assert named(falling, 0.6) == ["still improving"]
    assert "still improving" not in named(falling, 0.6, stopped_early=True)


def test_unstable_by_falls_that_are_no_noise():
    jumps = [0.6, 0.8, 0.6, 0.82, 0.6, 0.85]
    rows = curves([1, 0.6, 0.5, 0.4, 0.35, 0.3], [0.7, 0.8, 0.85, 0.85, 0.86, 0.87], [0.9] * 6, jumps)
    assert "unstable" in named(rows)
    assert "2 times in 6 epochs, by as much as 22.0 points (epoch 5)" in diagnose(run(rows))[0].evidence
    assert "unstable" not in named(rows, val_images=20), "20 images vary as much by chance"


def test_learning_rate_too_high_by_a_rise_or_by_the_first_epoch():
    rising = curves([1, 0.5, 0.9, 0.6], [0.7] * 4, [0.9, 0.6, 0.8, 0.6], [0.72] * 4)
    assert named(rising)[0] == "learning rate too high"
    assert "in epoch 3 the training loss rose to 0.900 from 0.500" in diagnose(run(rising))[0].evidence
    for row in rising:
        row["val_loss"] = 0.6
    assert named(rising, 0.72) == ["underfitting"], "a rise in training alone is the draw of mixup's shares"
    first = curves([1.6 * GUESSING, 2, 1], [0.2, 0.5, 0.97], [2, 1, 0.5], [0.2, 0.5, 0.9])
    assert named(first)[0] == "learning rate too high"
    assert "learning rate too high" not in named(first, plain_loss=False), "penalties lift the loss by themselves"
    small = curves([1, 0.01, 0.03], [0.7, 0.99, 0.99], [0.9, 0.1, 0.12], [0.7, 0.97, 0.97])
    assert named(small, 0.99) == [NO_FAULT], "a rise within the noise is none"


@pytest.mark.parametrize(
    ("train_loss", "val_loss"),
    [
        ([40, 30, 20, 10], [90, 80, 9, 8]),  # never better than guessing
        ([1, 0.5, 9, 2.31], [1, 0.6, 50, 2.3]),  # and then a dead net, which guesses
        ([1, 0.5, 4, 5e9], [1, 0.6, 7, 8e3]),
    ],
)
def test_divergence_silences_every_other_rule(train_loss, val_loss):
    rows = curves(train_loss, [0.5, 0.8, 0.1, 0.1], val_loss, [0.4, 0.8, 0.1, 0.1])
    assert named(rows, 0.99) == [DIVERGED]
    assert named(rows, None) == [DIVERGED]
    assert named(rows, plain_loss=False) == [DIVERGED]


def test_slow_learning_and_a_passing_bump_are_no_divergence():
    slow = curves([2.31, 2.30, 2.30], [0.1] * 3, [2.31, 2.30, 2.29], [0.1] * 3)
    assert DIVERGED not in named(slow, 0.1)
    bump = curves([1, 5, 0.5, 0.4], [0.7] * 4, [1, 6, 0.6, 0.5], [0.7] * 4)
    assert DIVERGED not in named(bump)
    penalised = curves([9, 8, 7], [0.1] * 3, [2.31, 2.30, 2.29], [0.1] * 3)
    assert DIVERGED not in named(penalised, 0.1, plain_loss=False)


def test_nothing_holds_a_net_back_that_has_little_left_to_gain():
    best = curves([1.6 * GUESSING, 1.2, 1.1, 1.1], [0.4] * 4, [0.5, 0.3, 0.2, 0.1], [0.9, 0.97, 0.98, 0.99])
    assert named(best, 0.99) == [NO_FAULT]
    less = curves([1.6 * GUESSING, 1.2, 1.1, 1.1], [0.4] * 4, [0.5, 0.3, 0.2, 0.1], [0.8, 0.87, 0.88, 0.9])
    assert named(less, 0.9) == ["learning rate too high", "still improving"]


SUMMARY = {"best_epoch": 3, "stopped_because": "all epochs done"}
PLAIN = {"model": {"hidden_dropout": 0.0}}


@pytest.mark.parametrize(
    ("settings", "unfit"),
    [
        (PLAIN, ()),
        ({}, ("dropout",)),  # simple-cnn has some by default
        (PLAIN | {"augment": {"mixup": 1.0}}, ("mixup",)),
        (PLAIN | {"augment": {"cutmix": 1.0, "hflip": True}}, ("augmentation", "cutmix")),
        (PLAIN | {"augment": {"rand_magnitude": 12}}, ()),  # of RandAugment, which is off
        (PLAIN | {"augment": {"rand_ops": 2}}, ("augmentation",)),
        (PLAIN | {"train": {"ema": 0.99}}, ("averaged weights",)),
        (PLAIN | {"data": {"sampling": "balanced"}}, ("balanced sampling",)),
        ({"model": {"name": "small-resnet"}}, ()),  # which has no dropout, whatever the key says
        ({"model": {"name": "timm/resnet18"}}, ("dropout",)),
        ({"model": {"name": "convnet", "blocks": [{"channels": 4, "dropout": 0.1}]}}, ("dropout",)),
    ],
)
def test_running_numbers_are_compared_only_where_nothing_distorts_them(settings, unfit):
    rows = curves([1.5] * 3, [0.5] * 3, [1.4] * 3, [0.5, 0.55, 0.56])
    config = RunConfig().with_values(**settings)
    seen = course(rows, SUMMARY, config, 10, 800, 2000)
    assert seen.unfit == unfit
    assert (seen.train is None) == bool(unfit)
    assert diagnose(seen)[0].name == (NO_FAULT if unfit else "underfitting")
    assert all(name in not_judged(seen) for name in unfit)
    measured = course(rows, SUMMARY | {"train": {"accuracy": 0.56, "loss": 1.4, "n": 800}}, config, 10, 800, 2000)
    assert (measured.train.accuracy, measured.train.n, measured.unfit) == (0.56, 800, ())
    assert diagnose(measured)[0].name == "underfitting"
    assert not_judged(measured) == ""


QUICK = {"track": {"wandb": "off"}, "train": {"threads": 1}, "data": {"source": "digits", "cache": None}}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mixup", {"augment": {"mixup": 1.0}, "epochs": 12}),
        ("cutmix", {"augment": {"cutmix": 1.0}, "epochs": 12}),
        ("dropout", {"model": {"name": "simple-cnn", "hidden_dropout": 0.7, "dropout": 0.2}, "epochs": 16}),
        ("augmentation", {"augment": {"rotation": 15, "shift": 1}, "epochs": 12}),
    ],
)
def test_a_net_that_learned_well_under_hard_training_has_no_fault_of_learning(tmp_path, name, settings):
    """Real runs: their running accuracy is far below the validation accuracy, which is good."""
    made = convsmith.train(**({"model": "simple-cnn", "name": name, "runs_dir": tmp_path} | QUICK | settings))
    best = made.metrics[made.summary["best_epoch"] - 1]
    assert best["val_accuracy"] > 0.9
    assert best["train_accuracy"] < best["val_accuracy"] - 0.02
    found = {finding["name"] for finding in sections.diagnosis(read_inputs(made.directory))["findings"]}
    assert not found & {DIVERGED, "learning rate too high", "underfitting", "overfitting"}


@pytest.mark.parametrize("settings", [{"lr": 10.0}, {"lr": 50.0, "optim": {"name": "sgd"}}])
def test_a_run_that_diverged_is_called_that_and_nothing_else(tmp_path, settings):
    made = convsmith.train(**({"model": "simple-cnn", "epochs": 5, "runs_dir": tmp_path} | QUICK | settings))
    section = sections.diagnosis(read_inputs(made.directory))
    assert [finding["name"] for finding in section["findings"]] == [DIVERGED]
    assert "--optim.lr" in section["proposals"][0].command


def test_every_rule_has_advice_and_a_sentence():
    assert set(advice.SUGGESTIONS) == {*RULES, NO_FAULT, TOO_SHORT}


def setting(config, images_per_class=480.0, room=0.3):
    return advice.Setting(config, images_per_class, room)


@pytest.mark.parametrize("preset", ["baseline", "digits", "strong", "study-example"])
@pytest.mark.parametrize("name", [*RULES, NO_FAULT, TOO_SHORT])
def test_each_proposed_command_is_a_config_whose_net_can_be_built(preset, name):
    assert preset in presets()
    before = validate(merge(preset_layer(preset), {"optim": {"lr": 0.001}}))
    proposals = advice.proposals([Finding(name, "")], setting(before, 1000), Path("runs/a b/config.yaml"), {})
    assert 1 <= len(proposals) <= advice.MOST
    for proposal in proposals:
        words = shlex.split(proposal.command)
        assert words[0] == "convsmith"
        assert words[2] == "runs/a b/config.yaml"
        flags = {key.removeprefix("--"): value for key, value in zip(words[3::2], words[4::2], strict=True)}
        if words[1] == "crossval":
            continue
        after = validate(merge(before.model_dump(mode="json"), flag_layer(flags)))
        assert after != before, "it changes something"
        build(after.model, 3, 32, 10)
        assert not proposal.measured


def test_what_a_suggestion_says_was_measured_is_in_the_book():
    book, told = advice.results(), set()
    for config in (
        RunConfig(),
        RunConfig().with_values(model={"hidden_dropout": 0.0}, data={"source": "photos"}),
    ):
        for suggest in advice.SUGGESTIONS.values():
            told |= {
                one.measured_in for one in suggest(config.with_values(optim={"lr": advice.BOOK_LR})) if one.measured_in
            }
    assert len(told) >= 8
    for study, arm in told:
        assert arm in {one["name"] for one in book[study]["arms"]}, f"{study} has no arm {arm}"


BASE = {"model": "convnet", "weights": "none", "optimizer": "adam", "lr": 0.002, "batch_size": 64, "image_size": None}
BASE |= {"accuracy": 0.6}


def study(arm, **changes):
    setting = {"metric": "accuracy", "n_images": 6000, "n_classes": 10, "data": "cifar10", "folds": 5, "epochs": 6}
    return setting | {"base": BASE, "arms": [arm]} | changes


def shifted(verdict, **changes):
    arm = {"name": "shift", "difference": 0.021, "ci95": [0.01, 0.032], "verdict": verdict}
    return {"augmentation": study(arm, **changes)}


OVERFITS = [Finding("overfitting", "")]
LIKE_THE_BOOK = RunConfig().with_values(
    optim={"lr": 0.001}, model={"name": "simple-cnn", "hidden_dropout": 0.0}, train={"epochs": 6}
)


def test_the_evidence_book_orders_words_and_forbids():
    best = advice.proposals(OVERFITS, setting(LIKE_THE_BOOK), Path("c.yaml"), shifted("helps"))[0]
    assert best.command == "convsmith train c.yaml --augment.shift 0.125"
    assert best.measured.startswith("+2.10 percentage points of accuracy (95% interval +1.00 to +3.20): helps.")
    assert (
        "convnet with random weights, 480 training images per class of cifar10, 6 epochs, with which the base"
        in best.measured
    )
    assert best.measured.endswith("reaches 60.00%, 5 folds.")
    proposed = advice.proposals(OVERFITS, setting(LIKE_THE_BOOK), Path("c.yaml"), shifted("hurts"))
    assert len(proposed) == advice.MOST
    assert not any("augment.shift" in proposal.command for proposal in proposed)


@pytest.mark.parametrize(
    ("run_setting", "record"),
    [
        (setting(LIKE_THE_BOOK), shifted("hurts", epochs=13)),
        (setting(LIKE_THE_BOOK, images_per_class=100), shifted("hurts")),
        (setting(LIKE_THE_BOOK.with_values(model={"name": "small-resnet"})), shifted("hurts")),
        (setting(LIKE_THE_BOOK.with_values(transfer={"weights": "runs/x"})), shifted("hurts")),
        (setting(LIKE_THE_BOOK, room=0.02), shifted("helps")),
        (setting(LIKE_THE_BOOK, room=0.19), shifted("helps")),
        (setting(LIKE_THE_BOOK, room=0.81), shifted("hurts")),
    ],
)
def test_evidence_of_another_setting_is_neither_quoted_nor_followed(run_setting, record):
    config = run_setting.config
    if config.transfer.weights == "none":
        run_setting = advice.Setting(
            config.with_values(data={"source": "digits"}), run_setting.images_per_class, run_setting.room
        )
    proposed = advice.proposals(OVERFITS, run_setting, Path("c.yaml"), record)
    assert any("augment.shift" in proposal.command for proposal in proposed)
    assert not any(proposal.measured for proposal in proposed)


@pytest.mark.parametrize("room", [0.0, 0.011, 0.0199])
def test_nothing_is_proposed_that_the_validation_score_leaves_no_room_for(room):
    photos = LIKE_THE_BOOK.with_values(data={"source": "my photos"})
    few = setting(photos, images_per_class=40, room=room)
    for name in (*RULES, NO_FAULT, TOO_SHORT):
        proposed = advice.proposals([Finding(name, "")], few, Path("c.yaml"), advice.results())
        assert [one.command for one in proposed] == ["convsmith crossval c.yaml --folds 5"]


@pytest.mark.parametrize("images_per_class", [3, 40, 90, 500])
def test_few_images_are_told_of_pretrained_weights_first(images_per_class):
    config = RunConfig().with_values(data={"source": "my photos", "limit": 300}, optim={"lr": 0.001})
    found = [Finding(NO_FAULT, "")]

    def first(config, images_per_class=images_per_class, room=0.5):
        return advice.proposals(found, setting(config, images_per_class, room), Path("c.yaml"), advice.results())[0]

    proposal = first(config)
    words = shlex.split(proposal.command)
    after = read_settings(verb_parser("train").parse_all(words[2:])).config
    assert (after.data.source, after.data.limit, after.transfer.weights) == ("my photos", 300, "default")
    assert proposal.measured == "", "the book measured a published net from scratch, and not this one"
    for other in (
        first(config, 501),
        first(config.with_values(transfer={"weights": "runs/x"})),
        first(config.with_values(data={"source": "digits"})),
        first(config.with_values(data={"source": ARRAYS})),
    ):
        assert "pretrained" not in other.reason


def test_the_gain_of_pretrained_weights_is_quoted_for_such_a_net_alone():
    config = RunConfig().with_values(
        model={"name": "timm/resnet18"},
        data={"source": "photos"},
        optim={"lr": 0.001},
        train={"epochs": 12},
        transfer={"weights": "none"},
    )
    arm = {"name": "from scratch", "difference": -0.3, "ci95": [-0.32, -0.28], "verdict": "hurts"}
    base = BASE | {"model": "timm/resnet18", "weights": "pretrained", "accuracy": 0.7}
    book = {"transfer-50": study(arm, base=base, n_images=500, epochs=12)}
    found = [Finding(NO_FAULT, "")]

    def quoted(room):
        return advice.proposals(found, setting(config, 45, room), Path("c.yaml"), book)[0].measured

    assert quoted(0.6).startswith("+30.00 percentage points of accuracy (95% interval +28.00 to +32.00): helps.")
    assert "40 training images per class of cifar10, 12 epochs" in quoted(0.6)
    assert quoted(0.2) == "", "there are not 30 points left to gain"
