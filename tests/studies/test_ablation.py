"""ablate through the real command line: pairs, verdicts, files, budgets, failures."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from convsmith.config import RunConfig
from convsmith.rundir import RunDir
from convsmith.studies import ablation
from convsmith.studies.comparison import Plan, read_plan
from convsmith.studies.config import validate_study
from convsmith.studies.halving import given_up
from convsmith.studies.statistics import holm
from convsmith.studies.variance import Training, compare_by_image, moments, shared_excess
from convsmith.training import setup

STUDY = {
    "question": "What matters on the digits?",
    "preset": "digits",
    "base": {
        "data": {"limit": 300},
        "train": {"epochs": 4, "batch_size": 16, "threads": 1, "layout": "contiguous", "ema": 0.0},
        "track": {"wandb": "off"},
    },
    "arms": {"no learning": {"optim.lr": 1e-6}, "average": {"model.pool": "average"}},
    "folds": 3,
    "margin": 0.05,
}


def write(folder: Path, **study: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | study), encoding="utf-8")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def right(run: Path) -> Any:
    """Whether each image that a run held out is classified correctly, 1 or 0."""
    return np.array([float(row["label"] == row["predicted"]) for row in rows(run / "predictions-held-out.csv")])


def record(study: Path) -> Any:
    return json.loads((study / "ablation.json").read_text(encoding="utf-8"))


def test_arms_are_paired_and_judged(convsmith: Any, tmp_path: Path) -> None:
    done = convsmith("ablate", write(tmp_path), "--jobs", "2", "--name", "ab")
    study = tmp_path / "runs/ab"
    result = record(study)
    base = {one["fold"]: one["value"] for one in result["base"]["per_fold"]}
    p_values = []
    trainings = {}
    for name in ("no learning", "average"):
        images = [right(study / "arms" / name / fold) - right(study / "arms/base" / fold) for fold in "123"]
        trainings[name] = [Training(1, at, 0, np.arange(100) + 100 * at, one) for at, one in enumerate(images)]
    shared = shared_excess([moments(of) for of in trainings.values()])
    for arm in result["arms"]:
        values = [one["value"] for one in arm["per_fold"]]
        assert [one["seed"] for one in arm["per_fold"]] == [one["seed"] for one in result["base"]["per_fold"]]
        assert [one["difference"] for one in arm["per_fold"]] == pytest.approx(
            [one["value"] - base[one["fold"]] for one in arm["per_fold"]]
        )
        expected = compare_by_image(trainings[arm["name"]], 0.05, shared=shared)
        assert arm["difference"] == pytest.approx(np.mean(values) - np.mean(list(base.values())))
        assert arm["p"] == pytest.approx(expected.p)
        assert arm["ci95"] == pytest.approx([expected.low, expected.high])
        p_values.append(arm["p"])
    assert [arm["p_holm"] for arm in result["arms"]] == pytest.approx(holm(p_values))
    nothing = next(arm for arm in result["arms"] if arm["name"] == "no learning")
    assert nothing["verdict"] == "hurts"
    assert nothing["difference"] < -0.3
    # The same folds: the images held out are those of the base.
    for fold in "123":
        ids = [
            [row["id"] for row in rows(study / "arms" / arm / fold / "predictions-held-out.csv")]
            for arm in ("base", "no learning", "average")
        ]
        assert ids[0] == ids[1] == ids[2]
    with (study / "ablation.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["arm"] == "base"
    assert r"\toprule" in (study / "ablation.tex").read_text(encoding="utf-8")
    assert "Bayle et al." in (study / "conclusion.md").read_text(encoding="utf-8")
    assert (study / "figures/forest.png").stat().st_size > 5000
    for line in (
        "needs",
        "power",
        "too small a study",
        "no learning",
        "hurts",
        "next: convsmith report runs/ab\n      convsmith train runs/ab/arms",
    ):
        assert line in done.stdout
    convsmith("train", study / "arms/average/config.yaml", "--print-config")
    assert not list(study.rglob("test-access.jsonl"))

    again = convsmith("ablate", write(tmp_path), "--name", "ab")
    assert "9 of 9 were done before" in again.stdout
    changed = convsmith("ablate", write(tmp_path, margin=0.1), "--name", "ab", code=2)
    assert "margin was 0.05, now 0.1" in changed.stderr
    changed = convsmith("ablate", write(tmp_path, arms={"average": {"model.pool": "average"}}), "--name", "ab", code=2)
    assert "arms.no learning.optim.lr was 1e-06, now absent" in changed.stderr


def test_an_arm_that_diverges_is_reported_and_the_others_are_finished(in_process: Any, tmp_path: Path) -> None:
    arms = {
        "wild": {"optim": {"name": "sgd", "lr": 100.0}, "model": {"norm": "none", "activation": "leaky_relu"}},
        "average": {"model.pool": "average"},
    }
    path = write(tmp_path, arms=arms, folds=2)
    done = in_process("ablate", path, "--name", "ab", "--epochs", "1", code=1)
    result = record(tmp_path / "runs/ab")
    average, wild = sorted(result["arms"], key=lambda arm: str(arm["name"]))
    assert wild["verdict"] == "not computed"
    assert wild["missing"] == 2
    assert wild["p"] is None
    assert average["missing"] == 0
    assert average["p"] is not None
    assert set(result["failed"]) == {"wild 1", "wild 2"}
    assert "not a finite number" in result["failed"]["wild 1"]
    assert "failed: wild 1" in done.stdout
    assert "wild" in (tmp_path / "runs/ab/conclusion.md").read_text(encoding="utf-8")


def test_the_learning_rate_is_chosen_for_each_arm_on_inner_splits(in_process: Any, tmp_path: Path) -> None:
    choose = {"knobs": {"optim.lr": [1e-7, 5e-3]}, "epochs": 4}
    path = write(tmp_path, arms={"sgd": {"optim.name": "sgd"}}, choose=choose, folds=2)
    in_process("ablate", path, "--name", "ab", "--epochs", "2", "--data.limit", "900")
    result = record(tmp_path / "runs/ab")
    for one in result["base"]["per_fold"] + result["arms"][0]["per_fold"]:
        assert one["chosen"] == {"optim": {"lr": 5e-3}}
    config = yaml.safe_load((tmp_path / "runs/ab/arms/sgd/1/config.yaml").read_text(encoding="utf-8"))
    assert config["optim"]["lr"] == 5e-3
    assert config["optim"]["name"] == "sgd"
    # Nothing that a choice looked at was held out.
    splits = json.loads((tmp_path / "runs/ab/arms/sgd/1-choice-1/splits.json").read_text(encoding="utf-8"))["splits"]
    predicted = rows(tmp_path / "runs/ab/arms/sgd/1/predictions-held-out.csv")
    assert not {row["id"] for row in predicted} & {*splits["train"], *splits["val"]}


def test_a_fold_whose_choices_were_done_before_it_was_stopped_goes_on(in_process: Any, tmp_path: Path) -> None:
    choose = {"knobs": {"optim.lr": [1e-3, 5e-3]}, "epochs": 1}
    path = write(tmp_path, arms={"average": {"model.pool": "average"}}, choose=choose, folds=2)
    in_process("ablate", path, "--name", "ab", "--epochs", "1")
    before = record(tmp_path / "runs/ab")
    shutil.rmtree(tmp_path / "runs/ab/arms/average/2")  # as a kill right after the choices leaves it
    again = in_process("ablate", path, "--name", "ab", "--epochs", "1")
    assert "3 of 4 were done before" in again.stdout
    values = [[one["value"] for one in of["arms"][0]["per_fold"]] for of in (before, record(tmp_path / "runs/ab"))]
    assert values[0] == values[1]


TWO = {"no learning": {"optim.lr": 1e-6}, "average": {"model.pool": "average"}}


def test_a_budget_stops_arms_at_looks_and_a_resumed_study_repeats_them(in_process: Any, tmp_path: Path) -> None:
    path = write(tmp_path, arms=TWO, folds=2, repeats=2, margin=None)
    words = ("ablate", path, "--name", "ab", "--budget", "50", "--epochs", "2", "--data.limit", "600")
    done = in_process(*words)
    study = tmp_path / "runs/ab"
    result, looks = record(study), json.loads((study / "looks.json").read_text(encoding="utf-8"))
    bad, average = sorted(result["arms"], key=lambda arm: -len(arm["name"]))
    assert bad["verdict"] == "hurts"
    assert bad["stopped"] == {"because": "verdict", "look": 1, "trainings": 3, "level": bad["stopped"]["level"]}
    assert 0.95 < bad["stopped"]["level"] < 1
    assert len(bad["per_fold"]) == 3
    assert bad["missing"] == 0
    assert average["stopped"]["trainings"] == 4
    assert result["looks"] == len(looks["looks"]) == 2
    assert "no learning: stopped after 3 of 4 runs: its verdict is clear" in done.stdout
    assert "Error rates hold over all looks" in done.stdout
    for line in ("(its verdict is clear): 'no learning' after 3", "Lan and DeMets"):
        assert line in (study / "conclusion.md").read_text(encoding="utf-8")
    assert "3 of 4" in (study / "ablation.csv").read_text(encoding="utf-8")

    kept = (study / "ablation.json").read_bytes(), (study / "looks.json").read_bytes()
    # As a kill leaves it that came before the second look was written.
    (study / "looks.json").write_text(json.dumps(looks | {"looks": looks["looks"][:1]}), encoding="utf-8")
    shutil.rmtree(study / "arms/average/4")
    in_process(*words)
    again = json.loads((study / "looks.json").read_text(encoding="utf-8"))
    assert again["looks"][0] == looks["looks"][0]
    assert again["looks"][1] | {"seconds": 0} == looks["looks"][1] | {"seconds": 0}
    assert in_process("resume", study).stdout.count("7 of 7") == 0
    values = [[arm["p"], arm["ci95"], arm["verdict"]] for arm in record(study)["arms"]]
    assert values == [[arm["p"], arm["ci95"], arm["verdict"]] for arm in json.loads(kept[0])["arms"]]

    planned = in_process("ablate", path, "--detect", "3", *words[4:])
    assert f"What varies is as measured by the study '{Path('runs/ab')}'" in planned.stdout

    looks["looks"][1]["arms"]["average"]["fraction"] = 0.1
    (study / "looks.json").write_text(json.dumps(looks), encoding="utf-8")
    refused = in_process("resume", study, code=2)
    assert "the information on 'average' does not rise from look to look" in refused.stderr
    looks["looks"][0]["trainings"]["average"] = 99
    (study / "looks.json").write_text(json.dumps(looks), encoding="utf-8")
    refused = in_process("resume", study, code=2)
    assert "looks.0 has more than 4 trainings" in refused.stderr


def test_a_study_of_an_older_version_keeps_its_budget_as_that_did(in_process: Any, tmp_path: Path) -> None:
    words = ("ablate", write(tmp_path, arms=TWO), "--name", "ab", "--budget", "0.0001", "--epochs", "2")
    in_process(*words)
    study = tmp_path / "runs/ab"
    assert {arm["name"]: arm["stopped"]["because"] for arm in record(study)["arms"]}["average"] in ("plan", "budget")
    spec = yaml.safe_load((study / "study.yaml").read_text(encoding="utf-8"))
    begun = json.loads((study / "begun.json").read_text(encoding="utf-8"))
    del spec["stopping"], begun["study"]["stopping"]
    (study / "study.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    (study / "begun.json").write_text(json.dumps(begun), encoding="utf-8")
    (study / "looks.json").unlink()
    done = in_process(*words)
    result = record(study)
    assert result["dropped"] == {"no learning": 1}
    dropped = next(arm for arm in result["arms"] if arm["name"] == "no learning")
    assert dropped["verdict"] == "given up"
    assert dropped["p_holm"] is None
    kept = next(arm for arm in result["arms"] if arm["name"] == "average")
    assert len(kept["per_fold"]) == 3
    assert "given up after 1 of 3 runs" in done.stdout
    assert "this study goes on as in its own version, which gives up the worse arms to keep a budget" in done.stdout


def test_halving_gives_up_what_it_gave_up_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        arm: {place: {"seconds": 10.0, "accuracy": accuracy} for place in range(4)}
        for arm, accuracy in [("base", 0.5), ("good", 0.6), ("bad", 0.4)]
    }
    monkeypatch.setattr(Plan, "scores", lambda plan: known)
    folds = {"divisions": [{}] * 4}
    for minutes, expected in [(2.1, []), (1.9, ["bad"])]:  # all of it takes two minutes
        plan = Plan(RunDir(tmp_path), {"seeds": 1, "budget": minutes, "metric": "accuracy"}, {}, folds)
        assert given_up(plan, list(known), 1, max_workers=1) == expected


def test_a_plan_says_what_finds_a_difference_and_trains_nothing(in_process: Any, tmp_path: Path) -> None:
    path = write(tmp_path, arms=TWO)
    done = in_process("ablate", path, "--detect", "5", "--seed", "3", "--budget", "0.01", "--name", "later")
    command = done.stdout.rpartition("next: ")[2].strip()
    sized = re.fullmatch(r"convsmith ablate \S+ --folds 3 --repeats (\d+) --seeds 1 (.*)", command)
    assert sized, command
    assert sized[2] == "--name later --budget 0.01 --seed 3"
    for line in ("as it is", "enough", "8 of 10 studies, after Holm's correction for 2 arms", "assumed: arm and base"):
        assert line in done.stdout
    assert not (tmp_path / "runs").exists()
    far = in_process("ablate", path, "--detect", "0.01")
    assert "No number of repeats finds a difference in accuracy of 0.01 percentage points on 300 images" in far.stdout
    assert "next:" not in far.stdout
    for number in ("0", "nan", "101"):
        assert "--detect" in in_process("ablate", path, "--detect", number, code=2).stderr
    refused = in_process("ablate", write(tmp_path, arms=TWO, metric="f1"), "--detect", "1", code=2)
    assert "nothing is known yet of how differences in F1 vary on these data" in refused.stderr


def test_seeds_of_a_fold_are_averaged_before_the_test(in_process: Any, tmp_path: Path) -> None:
    path = write(tmp_path, arms={"average": {"model.pool": "average"}}, folds=2, seeds=2)
    in_process("ablate", path, "--name", "ab", "--epochs", "1")
    result = record(tmp_path / "runs/ab")
    arm, base = result["arms"][0]["per_fold"], result["base"]["per_fold"]
    assert [one["fold"] for one in arm] == [1, 2, 1, 2]
    assert len({one["seed"] for one in arm}) == 4
    ours, theirs = (np.array([one["value"] for one in of]).reshape(2, 2).mean(axis=0) for of in (arm, base))
    assert result["arms"][0]["difference"] == pytest.approx((ours - theirs).mean())
    seeds = read_plan(RunDir(tmp_path / "runs/ab")).differences("average", "accuracy")
    assert result["arms"][0]["p"] == pytest.approx(compare_by_image(seeds).p)


def test_arms_share_the_precision_of_the_base_unless_they_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is the faster one is measured, and could differ between arms as it could by chance."""
    measured = iter(["bfloat16", "float32", "float32"])
    measure = setup.measure_step

    def at_random(config: RunConfig, *rest: Any) -> Any:
        way, *others = measure(config, *rest)
        chance = next(measured)
        return (way._replace(precision=chance) if config.train.precision == "auto" else way, *others)

    monkeypatch.setattr(setup, "measure_step", at_random)
    monkeypatch.setattr(setup, "is_small", lambda *_: False)  # of small steps it is not measured
    monkeypatch.setattr(ablation, "resume", lambda run, *_, **__: run)
    arms = {"average": {"model.pool": "average"}, "plain": {"train.precision": "float32"}}
    study = validate_study(STUDY | {"arms": arms}, "study.yaml")
    run: Any = ablation.ablate(study, runs_dir=tmp_path)
    known = json.loads((run.path / "arms.json").read_text(encoding="utf-8"))
    found = {arm: known[arm]["config"]["train"]["precision"] for arm in ("base", "average", "plain")}
    assert found == {"base": "bfloat16", "average": "bfloat16", "plain": "float32"}


def test_a_study_file_that_does_not_exist_gets_the_nearest(convsmith: Any) -> None:
    refused = convsmith("ablate", "poolin", code=2)
    assert "Did you mean 'pooling'" in refused.stderr


def test_an_arm_whose_sizes_do_not_fit_is_refused_before_anything_runs(in_process: Any, tmp_path: Path) -> None:
    arms = {"deep": {"model": {"name": "convnet", "blocks": [{"channels": 4}] * 5}}}
    refused = in_process("ablate", write(tmp_path, arms=arms), "--name", "ab", code=2)
    assert refused.stderr.startswith("error: arm 'deep': ") or "arm 'deep'" in refused.stderr
    assert not (tmp_path / "runs/ab").exists()
