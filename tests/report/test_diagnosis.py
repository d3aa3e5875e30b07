"""Each rule on curves made to meet it, on curves made to miss it narrowly, and what each finding leads to."""

import math
import shlex
from pathlib import Path

import pytest

from convsmith.cli import verb_parser
from convsmith.config import RunConfig, flag_layer, merge, preset_layer, presets, validate
from convsmith.data.sources import ARRAYS
from convsmith.nets.build import build
from convsmith.report import advice
from convsmith.report.diagnosis import NO_FAULT, RULES, TOO_SHORT, Finding, diagnose, standard_error
from convsmith.verbs.flags import read_config

GUESSING = math.log(10)


def curves(train_loss, train_accuracy, val_loss, val_accuracy):
    columns = zip(train_loss, train_accuracy, val_loss, val_accuracy, strict=True)
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return [{"epoch": at, **dict(zip(names, row, strict=True))} for at, row in enumerate(columns, start=1)]


def named(rows, **settings):
    return [finding.name for finding in diagnose(rows, **({"classes": 10, "val_images": 2000} | settings))]


FINE = curves(
    [1, 0.3, 0.1, 0.09, 0.08], [0.7, 0.9, 0.97, 0.98, 0.98], [0.8, 0.3, 0.1, 0.1, 0.1], [0.7, 0.9, 0.97, 0.96, 0.965]
)


def test_a_sound_run_has_no_fault_and_a_short_one_no_verdict():
    assert named(FINE) == [NO_FAULT]
    assert named(FINE[:2]) == [TOO_SHORT]
    assert "2 of the 3" in diagnose(FINE[:2], 10, 100)[0].evidence


def test_overfitting_by_a_rising_loss():
    rows = curves([1, 0.5, 0.3, 0.2], [0.7, 0.8, 0.9, 0.9], [0.9, 0.6, 0.65, 0.9], [0.7, 0.8, 0.85, 0.86])
    assert named(rows) == ["overfitting"]
    assert "from 0.600 in epoch 2 to 0.900" in diagnose(rows, 10, 2000)[0].evidence
    rows[-1]["val_loss"] = 0.6 * 1.1  # not above ten percent
    assert "overfitting" not in named(rows)


def test_overfitting_by_a_gap_needs_more_images_than_few():
    rows = curves([1, 0.3, 0.1], [0.7, 0.9, 0.99], [0.9, 0.6, 0.6], [0.7, 0.8, 0.9])
    assert "overfitting" in named(rows)
    assert 3 * standard_error(0.9, 50) > 0.09
    assert "overfitting" not in named(rows, val_images=50)


def test_underfitting_but_not_while_it_still_improves():
    flat = curves([1.5] * 6, [0.5, 0.54, 0.55, 0.55, 0.55, 0.55], [1.4] * 6, [0.5, 0.55, 0.56, 0.55, 0.55, 0.55])
    assert named(flat) == ["underfitting"]
    falling = curves([1.5, 1.4, 1.3, 1.2], [0.4, 0.5, 0.55, 0.6], [1.4, 1.3, 1.2, 1.1], [0.4, 0.5, 0.55, 0.6])
    assert named(falling) == ["still improving"]
    assert "still improving" not in named(falling, stopped_early=True)


def test_unstable_by_falls_that_are_no_noise():
    jumps = [0.6, 0.8, 0.6, 0.82, 0.6, 0.85]
    rows = curves([1, 0.6, 0.5, 0.4, 0.35, 0.3], [0.7, 0.8, 0.85, 0.85, 0.86, 0.87], [0.9] * 6, jumps)
    assert "unstable" in named(rows)
    assert "2 times in 6 epochs, by as much as 22.0 points (epoch 5)" in diagnose(rows, 10, 2000)[0].evidence
    assert "unstable" not in named(rows, val_images=20), "20 images vary as much by chance"


def test_learning_rate_too_high_by_a_rise_or_by_the_first_epoch():
    rising = curves([1, 0.5, 0.9, 0.6], [0.7] * 4, [0.9] * 4, [0.72] * 4)
    assert named(rising)[0] == "learning rate too high"
    assert "from 0.500 in epoch 2 to 0.900 in epoch 3" in diagnose(rising, 10, 2000)[0].evidence
    first = curves([1.6 * GUESSING, 2, 1], [0.2, 0.5, 0.97], [2, 1, 0.5], [0.2, 0.5, 0.97])
    assert named(first)[0] == "learning rate too high"
    small = curves([1, 0.01, 0.03], [0.7, 0.99, 0.99], [0.9, 0.1, 0.1], [0.7, 0.97, 0.97])
    assert named(small) == [NO_FAULT], "a rise within the noise is none"


def test_val_loss_as_monitor_chooses_the_epoch_of_the_gap():
    rows = curves([1, 0.5, 0.4], [0.6, 0.7, 0.99], [0.6, 0.5, 0.52], [0.6, 0.7, 0.75])
    assert "overfitting" in named(rows)
    assert "overfitting" not in named(rows, monitor="val_loss")


def test_every_rule_has_advice_and_a_sentence():
    assert set(advice.SUGGESTIONS) == {*RULES, NO_FAULT, TOO_SHORT}


@pytest.mark.parametrize("preset", ["baseline", "digits", "strong", "study-example"])
@pytest.mark.parametrize("name", [*RULES, NO_FAULT, TOO_SHORT])
def test_each_proposed_command_is_a_config_whose_net_can_be_built(preset, name):
    assert preset in presets()
    before = validate(merge(preset_layer(preset), {"optim": {"lr": 0.001}}))
    proposals = advice.proposals([Finding(name, "")], before, Path("runs/a b/config.yaml"), 10, {})
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
        assert proposal.measured == ""


def test_what_a_suggestion_says_was_measured_is_in_the_book():
    book, told = advice.results(), set()
    for config in (
        RunConfig(),
        RunConfig().with_values(model={"hidden_dropout": 0.5}),
    ):
        for suggest in advice.SUGGESTIONS.values():
            told |= {
                one.measured_in for one in suggest(config.with_values(optim={"lr": advice.BOOK_LR})) if one.measured_in
            }
    assert len(told) >= 8
    for study, arm in told:
        assert arm in {one["name"] for one in book[study]["arms"]}, f"{study} has no arm {arm}"


def record(verdict):
    arm = {"name": "shift", "difference": 0.021, "ci95": [0.01, 0.032], "verdict": verdict}
    conditions = {"metric": "accuracy", "n_images": 4000, "data": "cifar10", "folds": 5, "epochs": 6}
    return {"augmentation": conditions | {"arms": [arm]}}


def test_the_evidence_book_orders_words_and_forbids():
    config = RunConfig().with_values(optim={"lr": 0.001}, model={"hidden_dropout": 0.0})
    found = [Finding("overfitting", "")]
    best = advice.proposals(found, config, Path("c.yaml"), 400, record("helps"))[0]
    assert best.command == "convsmith train c.yaml --augment.shift 0.125"
    assert best.measured.startswith("+2.10 percentage points of accuracy (95% interval +1.00 to +3.20): helps.")
    assert "4,000 images of cifar10, 5 folds, base of 6 epochs" in best.measured
    commands = [proposal.command for proposal in advice.proposals(found, config, Path("c.yaml"), 400, record("hurts"))]
    assert len(commands) == advice.MOST
    assert not any("augment.shift" in command for command in commands)


@pytest.mark.parametrize(
    ("images_per_class", "study"), [(3, "transfer-10"), (90, "transfer-50"), (500, "transfer-250")]
)
def test_few_images_are_told_of_pretrained_weights_first(images_per_class, study):
    arm = {"name": "from scratch", "difference": -0.3, "ci95": [-0.32, -0.28], "verdict": "hurts"}
    conditions = {"metric": "accuracy", "n_images": 500, "data": "cifar10", "folds": 5, "epochs": 12}
    book = {study: conditions | {"arms": [arm]}}
    config = RunConfig().with_values(data={"source": "my photos", "limit": 300}, optim={"lr": 0.001})
    found = [Finding(NO_FAULT, "")]

    def first(config, images_per_class, book):
        return advice.proposals(found, config, Path("c.yaml"), images_per_class, book)[0]

    proposal = first(config, images_per_class, book)
    words = shlex.split(proposal.command)
    after = read_config(verb_parser("train").parse_all(words[2:]))
    assert (after.data.source, after.data.limit, after.transfer.weights) == ("my photos", 300, "default")
    assert proposal.measured.startswith("+30.00 percentage points of accuracy (95% interval +28.00 to +32.00): helps.")
    for other in (
        first(config, 501, book),
        first(config.with_values(transfer={"weights": "runs/x"}), images_per_class, book),
        first(config.with_values(data={"source": "digits"}), images_per_class, book),
        first(config.with_values(data={"source": ARRAYS}), images_per_class, book),
        first(config, images_per_class, {study: conditions | {"arms": [arm | {"verdict": "no difference shown"}]}}),
    ):
        assert "pretrained" not in other.reason
