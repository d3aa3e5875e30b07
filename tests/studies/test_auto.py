"""`auto`: its decisions as pure functions, the nested choice of penalties, and one race through the command line."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import convsmith
from convsmith.cli import main
from convsmith.config import RunConfig
from convsmith.errors import UserError
from convsmith.events import CandidateDone, Note, RaceStarted
from convsmith.prediction.calibration import log_softmax
from convsmith.rundir import default_name
from convsmith.studies import auto_plan
from convsmith.studies.auto import _lacking
from convsmith.studies.auto_candidates import ENLARGED, Candidate, probes, small_nets
from convsmith.studies.auto_keys import decided
from convsmith.studies.auto_plan import Score
from convsmith.studies.auto_probe import probe
from convsmith.studies.auto_race import FIXED, Race
from convsmith.studies.folds import Fold, make_folds


def test_few_images_are_crossed_where_there_is_time_and_each_class_is_in_each_fold() -> None:
    assert auto_plan.folds_for(398, 184, 60) == 5
    assert auto_plan.folds_for(398, 184, 20) == 0
    assert auto_plan.folds_for(398, 4, 60) == 4
    assert auto_plan.folds_for(398, 2, 60) == 0
    assert auto_plan.folds_for(2_001, 500, 1e6) == 0


def test_a_score_is_the_loss_at_the_best_temperature() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    logits = np.eye(3)[labels] * 2 + rng.normal(size=(200, 3))
    score = Score.of(logits, labels)
    assert Score.of(10 * logits, labels).loss == pytest.approx(score.loss, rel=1e-4)
    assert Score.of(10 * logits, labels).temperature == pytest.approx(10 * score.temperature, rel=1e-2)
    assert score.loss < -log_softmax(logits * 3)[np.arange(200), labels].mean()


def test_the_lowest_mean_loss_wins_and_of_equal_ones_the_first() -> None:
    def score(loss: float) -> Score:
        return Score(loss, 0.9, 10, 1.0)

    assert auto_plan.best({"a": [score(0.3), score(0.1)], "b": [score(0.1), score(0.2)]}) == "b"
    assert auto_plan.best({"a": [score(0.2)], "b": [score(0.2)]}) == "a"


def test_a_training_is_stopped_only_if_it_could_hardly_catch_up() -> None:
    assert auto_plan.is_lost(0.40, 100, 0.5, 0.97)
    assert not auto_plan.is_lost(0.40, 100, 0.2, 0.97)  # too early to say
    assert not auto_plan.is_lost(0.90, 100, 0.5, 0.95)  # it may still lose most of its errors
    assert not auto_plan.is_lost(0.90, 30, 0.9, 0.95)  # few images say little
    assert auto_plan.is_lost(0.90, 3_000, 0.9, 0.97)


def test_epochs_fill_the_share_of_the_time_and_never_exceed_it() -> None:
    for seconds in (10.0, 40.0, 100.0, 1_000.0):
        epochs = auto_plan.fitting_epochs(3, 30, 0.5, 2.0, 6.0, seconds)
        assert epochs in (0, *range(3, 31))
        assert not epochs or 6 * (2 + 0.5 * epochs) * auto_plan.SLOWER <= seconds
    assert auto_plan.fitting_epochs(3, 30, 0.5, 2.0, 6.0, 1_000) == 30
    assert auto_plan.fitting_epochs(3, 30, 0.5, 2.0, 6.0, 10) == 0


def test_where_no_epochs_fit_the_line_names_what_takes_the_time() -> None:
    assert auto_plan.no_epochs(5, 0.03, 4.0, 6.0, 30.0) == (
        "no time for 5 epochs of 0.0 s and 4.0 s besides in a training: 4.2 s are left for each"
    )


class Prepared:
    seconds_per_epoch = 0.1
    dataset = types.SimpleNamespace(train=range(100))
    config = RunConfig()


def test_a_small_net_is_not_left_out_for_what_no_training_has_shown_to_take() -> None:
    race = Race.__new__(Race)
    race.folds = [Fold(1, 1, np.arange(100), np.arange(10), np.arange(10))]
    race.prepared = lambda layer, what, measured=False: Prepared()  # type: ignore[assignment, method-assign]
    race._fixed, race._preparing, race._is_fixed_measured = FIXED, FIXED, False
    candidate = Candidate("simple-cnn", "scratch", {}, 5, 30)
    planned = race._planned(candidate, 6.0, 24.0, must=False)
    assert isinstance(planned, dict)
    assert 5 <= planned["train"]["epochs"] < 30
    race._is_fixed_measured = True  # now it is known, and the reason names it
    assert "and 4.0 s besides" in str(race._planned(candidate, 6.0, 24.0, must=False))


def test_on_a_machine_that_is_slower_than_usual_more_time_is_kept_for_the_end() -> None:
    assert auto_plan.closing_seconds(6.0, 1.0, 4.0) == 6.0
    assert auto_plan.closing_seconds(6.0, 10.0, 4.0) == 15.0


def test_the_sentence_is_that_of_the_record() -> None:
    measured = "accuracy 96.2% (95% interval 93.9% to 97.7%, "
    for how, on in ((auto_plan.OUT_OF_FOLD, "out of fold, 398 images"), (auto_plan.ON_VAL, "on 398 validation images")):
        assert auto_plan.sentence(383 / 398, 398, how) == f"{measured}{on}, none of which chose anything)"


def test_the_end_of_a_candidate_fits_beside_the_longest_names_of_networks_at_hand() -> None:
    entry = {"name": "finetune tf_efficientnet_lite0 288", "state": "stopped", "folds": [], "seconds": 1.0}
    record = {"winner": "", "candidates": [{**entry, "reason": "behind on 3 of 5 folds by epoch 5"}]}
    (row,) = auto_plan.standings(record)
    assert len(f"{row['candidate']}  {row['end']}") <= 80


def test_a_budget_that_no_race_can_keep_is_refused_with_one_that_it_can(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--minutes 0.01 are too few: .* take about \d+ s here; give --minutes \d"):
        convsmith.auto({"source": "digits", "limit": "100"}, minutes=0.01, runs_dir=tmp_path / "runs", show=False)
    assert not (tmp_path / "runs").exists()


def test_names_of_data_become_folders_that_need_no_quotes() -> None:
    assert default_name("ants bees", "auto") == "ants-bees-auto"


def test_help_of_auto_shows_only_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["--help", "train"], ["--help", "data"]):
        with pytest.raises(SystemExit):
            main(["auto", *words])
    said = capsys.readouterr().out
    assert not [key for key in decided() if f"--{key} " in said]
    assert all(f"--{key} " in said for key in ("train.seed", "train.threads", "data.val_fraction", "track.wandb"))
    assert main(["auto", "digits", "--lr", "1"]) == 2
    assert "auto decides optim.lr itself" in capsys.readouterr().err
    assert main(["auto", "digits", "--dry"]) == 2
    assert "--lr" not in capsys.readouterr().err


def test_candidates_follow_the_size_of_the_images() -> None:
    at_hand = {"timm/one": (Path("one.safetensors"), 224)}
    sizes = {side: [c.layer["data"]["image_size"] for c in probes(at_hand, side)] for side in (32, 200, 224)}
    assert sizes == {32: [ENLARGED, 224], 200: [224], 224: [224, 288]}
    order = [c.layer["data"]["image_size"] for c in probes({**at_hand, "timm/two": (Path("two.pth"), 260)}, 500)]
    assert order == [224, 320, 288, 260]  # the cheapest, and then from the largest on
    assert probes({}, 500) == []
    assert [net.name for net in small_nets(8, 1_000)] == ["simple-cnn", "simple-cnn ema"]
    assert all(net.layer["data"] == {"image_size": 64} for net in small_nets(300, 1_000))


def data(images: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = np.arange(images) % 2
    features = rng.normal(size=(images, 30))
    features[:, 0] += 2 * labels
    return features.astype(np.float32), labels.astype(np.int64)


def test_what_a_fold_chooses_does_not_depend_on_the_images_that_it_holds_out() -> None:
    features, labels = data()
    for fold in make_folds(labels, 3, 1, 0.2, 0, ["a", "b"]):
        found = probe(features, labels, fold, 2, None, 0)
        others, wrong = features.copy(), labels.copy()
        others[fold.held_out] = np.random.default_rng(2).normal(size=others[fold.held_out].shape)
        wrong[fold.held_out] = 1 - wrong[fold.held_out]
        again = probe(others, wrong, fold, 2, None, 0)
        assert again.penalty == found.penalty
        np.testing.assert_array_equal(again.val, found.val)
        assert not np.array_equal(again.held_out, found.held_out)


def test_images_of_a_group_are_not_on_both_sides_of_the_inner_validation() -> None:
    features, labels = data(60)
    features, labels = np.repeat(features, 2, axis=0), np.repeat(labels, 2)  # each image twice: leaking would pay
    features += np.random.default_rng(3).normal(size=features.shape).astype(np.float32) * 1e-3
    groups = np.arange(len(labels)) // 2
    rows = np.arange(len(labels))
    fold = Fold(1, 1, rows[:80], rows[80:100], rows[100:])
    apart = probe(features, labels, fold, 2, groups, 0).losses.min()
    assert probe(features, labels, fold, 2, None, 0).losses.min() < apart


def test_a_race_that_is_killed_goes_on_and_ends_with_a_run_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(auto_plan, "least_seconds", lambda *_: 0.0)  # a race that takes as little as can be
    done: list[str] = []

    def killed(event: object) -> None:
        if isinstance(event, CandidateDone):
            done.append(event.entry["name"])
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"minutes": 0.05, "name": "race", "track": {"wandb": "off"}}
    with pytest.raises(KeyboardInterrupt):
        convsmith.auto({"source": "digits", "limit": "300"}, show=killed, **settings)
    assert {row["state"] for row in convsmith.runs()} == {"stopped"}
    assert main(["report", "runs/race"]) == 2
    assert "has not ended: convsmith resume runs/race" in capsys.readouterr().err
    words = ["auto", "digits", "--minutes", "0.05", "--name", "race", "--data.limit", "300", "--track.wandb", "off"]
    assert main(["resume", "runs/race"]) == 0
    said = capsys.readouterr().out
    assert "\nreport  runs/race/report.html" in said
    record = json.loads(Path("runs/race/auto.json").read_text())
    assert said.splitlines()[-1] == record["estimate"]["sentence"]
    assert "none of which chose anything" in record["estimate"]["sentence"]
    assert [entry["name"] for entry in record["candidates"]].count(done[0]) == 1  # it was not run again
    assert record["folds"] == 0  # too little time for folds
    splits = json.loads(Path("runs/race/splits.json").read_text())["splits"]
    assert record["estimate"]["n"] == len(splits["val"])
    assert len(splits["train"]) + len(splits["val"]) == 300
    run = convsmith.load("runs/race")  # a run like any other
    assert run.summary["name"] == "race"
    assert run.evaluate("val")["accuracy"] == pytest.approx(record["estimate"]["accuracy"])
    assert record["winner"] in Path("runs/race/report.html").read_text()
    assert {row["kind"] for row in convsmith.runs()} == {"run"}
    assert not {"study.yaml", "race", "winner"} & {entry.name for entry in Path("runs/race").iterdir()}
    assert main(words) == 0  # it has ended before
    assert capsys.readouterr().out.splitlines()[-1] == record["estimate"]["sentence"]
    assert main([*words, "--data.limit", "200"]) == 2
    assert "exists already" in capsys.readouterr().err
    # With folds, val images took part in the choice; here they chose nothing, and their score is the estimate.
    for folds in (0, 5):
        Path("runs/race/auto.json").write_text(json.dumps(record | {"folds": folds}))
        assert main(["evaluate", "runs/race"]) == 0
        assert main(["report", "runs/race"]) == 0
        chosen = "took part in the choice of the"
        assert (chosen in capsys.readouterr().out) is (folds > 0)
        assert (f"images, which {chosen} winner)" in Path("runs/race/report.html").read_text()) is (folds > 0)


def begun(data: Any, runs: Path) -> tuple[str, list[str]]:
    """The directory of the race that `auto` begins or goes on with, which is stopped before its first candidate."""
    seen: list[Any] = []

    def stop(event: object) -> None:
        seen.append(event)
        if isinstance(event, RaceStarted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convsmith.auto(data, runs_dir=runs, show=stop)
    return seen[-1].directory.name, [event.text for event in seen if isinstance(event, Note)]


def test_where_the_data_of_a_stopped_race_have_changed_a_new_one_begins(tmp_path: Path) -> None:
    folder, runs, rng = tmp_path / "pets", tmp_path / "runs", np.random.default_rng(0)
    for name in (f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(10)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)
    first, notes = begun(folder, runs)
    assert not notes
    assert begun(folder, runs) == (first, [])
    shutil.copy(folder / "cat/0.png", folder / "cat/new.png")
    second, (note,) = begun(folder, runs)
    assert second != first
    assert f"{first}' was interrupted and cannot be continued, so a new race begins: " in note
    assert begun(folder, runs) == (second, [])


def test_a_stopped_race_of_arrays_is_known_by_what_is_in_them(tmp_path: Path) -> None:
    labels = np.arange(20) % 2
    one, other = np.random.default_rng(0).integers(0, 256, (2, 20, 8, 8), dtype=np.uint8)
    first, second = begun((one, labels), tmp_path), begun((other, labels), tmp_path)
    assert first != second
    assert begun((one, labels), tmp_path) == first
    assert begun((other, labels), tmp_path) == second


def test_data_without_val_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of which data\.val_fraction 0 leaves none: leave it out"):
        convsmith.auto({"source": "digits", "val_fraction": 0}, runs_dir=tmp_path, show=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"minutes": 0}, "--minutes 0: must be above 0"),
        ({"epochs": 3}, "train.epochs"),
        ({"lr": 0.1}, "auto decides optim.lr itself"),
        ({"augment": {"hflip": True}}, "auto decides augment.hflip itself"),
    ],
)
def test_what_the_race_decides_is_refused(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        convsmith.auto("digits", runs_dir=tmp_path, show=False, **settings)  # type: ignore[arg-type]


def test_weights_that_are_not_here_are_named_with_the_place_to_put_them(tmp_path: Path) -> None:
    assert f"save it as '{tmp_path / 'weights' / 'tf_efficientnet_lite0.safetensors'}'" in _lacking(tmp_path)
