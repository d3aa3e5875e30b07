"""The comparison of an ablation's arms: its runs, paired statistics, tables and a figure. Nothing is trained here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convsmith import files, records
from convsmith.config import validate
from convsmith.data.config import DataConfig
from convsmith.errors import UserError, damaged
from convsmith.figures.curves import forest_plot
from convsmith.figures.style import save
from convsmith.rundir import RunDir
from convsmith.studies import interim, study, text
from convsmith.studies.by_image import differences, differences_of_all
from convsmith.studies.config import BASE
from convsmith.studies.fold_job import FoldJob
from convsmith.studies.statistics import (
    LEVEL,
    Comparison,
    bootstrap_interval,
    corrected_level,
    holm,
    paired_comparison,
    smallest_detectable,
    verdict,
)
from convsmith.studies.variance import (
    Shared,
    Training,
    cells,
    compare_by_image,
    detectable,
    moments,
    shared_excess,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = "arms.json"  # each arm's resolved config, the hash of its data, the seconds that an epoch was measured to take
LOOKS = "looks.json"  # the looks at a study with a budget, and what followed from them
Scores = dict[str, dict[int, dict[str, Any]]]  # arm -> index of the run -> its record


@dataclass(frozen=True)
class Plan:
    """The runs of a study, as its directory describes them. Run k of each arm has the same fold and the same seed.

    `looks` are those of a study with a budget, None where there are none to be. `until` says how many runs of each arm
    count: those of the last look, or of the first one to come; None: all.
    """

    run: RunDir
    spec: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    folds: dict[str, Any]
    looks: Sequence[interim.Look] | None = None
    until: Mapping[str, int] | None = None

    @property
    def runs(self) -> int:
        """The number of runs per arm: each division of the images is trained once per seed."""
        return len(self.folds["divisions"]) * int(self.spec["seeds"])

    def job(self, arm: str, index: int) -> FoldJob:
        divisions = len(self.folds["divisions"])
        known = self.arms[arm]
        config = validate(known["config"])
        config = config.with_values(train={"seed": config.train.seed + index}, track={"group": self.run.name})
        return FoldJob(
            name=f"{arm} {index + 1}",
            directory=str((self.run.path / "arms" / arm / str(index + 1)).resolve()),
            folds_file=str((self.run.path / study.FOLDS).resolve()),
            index=index % divisions,
            config=config.model_dump(mode="json"),
            data_hash=known["hash"],
            choices=tuple(self.spec["choices"]),
            choice_epochs=self.spec["choice_epochs"],
            metric=self.spec["metric"],
        )

    @property
    def test(self) -> records.Test:
        return records.test_of(self.spec)

    def jobs(self) -> list[FoldJob]:
        """The runs that count, of all arms in turns."""
        return [self.job(arm, index) for index in range(self.runs) for arm in self.arms if index < self.until_of(arm)]

    def done(self, arm: str) -> dict[int, FoldJob]:
        """The runs of an arm that count and are done."""
        jobs = [self.job(arm, index) for index in range(self.until_of(arm))]
        return {index: job for index, job in enumerate(jobs) if job.done}

    def finished(self) -> dict[str, int]:
        """The number of runs of each arm that count and are done."""
        return {arm: len(self.done(arm)) for arm in self.arms}

    def until_of(self, arm: str) -> int:
        """The number of runs of an arm that count."""
        return self.runs if self.until is None else self.until[arm]

    def scores(self) -> Scores:
        """The records of the runs that are done."""
        return {arm: {index: job.record() for index, job in self.done(arm).items()} for arm in self.arms}

    def differences_of_all(self, metric: str) -> dict[str, list[Training] | UserError]:
        """The `differences` of each arm, or why an arm has none; empty lists where the test is over folds."""
        if self.test == "folds":
            return {arm: [] for arm in self.arms if arm != BASE}
        arms = {arm: self.done(arm) for arm in self.arms if arm != BASE}
        return differences_of_all(arms, self.done(BASE), self.folds, metric)

    def differences(self, arm: str, metric: str) -> list[Training]:
        """The differences of an arm and its base, image by image, of each run that both have done."""
        return differences(self.done(arm), self.done(BASE), self.folds, metric)


def read_plan(run: RunDir) -> Plan:
    arms, spec = records.read(run.path / ARMS, records.Arms), study.read_spec(run)
    plan = Plan(run, spec, arms, records.read(run.path / study.FOLDS, records.Folds))
    if spec.get("stopping") != "looks":
        return plan
    looks = records.read(run.path / LOOKS, records.Looks)["looks"]
    for number, look in enumerate(looks):
        if any(of.keys() != arms.keys() for of in (look["trainings"], look["next"] or arms)):
            raise damaged(run.path / LOOKS, f"looks.{number} has other arms than {ARMS}")
        if max(*look["trainings"].values(), *look["next"].values()) > plan.runs:
            raise damaged(run.path / LOOKS, f"looks.{number} has more than {plan.runs} trainings")
    if found := interim.unordered(looks):
        raise damaged(run.path / LOOKS, f"the information on '{found}' does not rise from look to look")
    first = dict.fromkeys(arms, min(interim.FIRST, plan.runs))
    return replace(plan, looks=looks, until=looks[-1]["trainings"] if looks else first)


def _value(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key in a config; of a file only its name, since results are read on other machines."""
    section, name = key.split(".")
    value = config[section][name]
    return Path(value).name if key == "transfer.weights" else value


def mean_of(runs: Mapping[int, Mapping[str, Any]], key: str) -> float:
    return float(np.mean([records.recorded(record, key) for record in runs.values()]))


def summarise(plan: Plan, failed: Mapping[str, str], dropped: Mapping[str, int]) -> dict[str, Any]:
    """Write ablation.json, its tables as CSV and LaTeX, the forest plot, and the conclusion in words.

    `failed` maps runs to the reasons why they failed; `dropped` maps the arms that were given up to the number of runs
    that they had completed.
    """
    record = records.write(plan.run.ablation, records.Ablation, compared(plan, failed, dropped))
    _write_tables(plan.run, record)
    return record


def compared(plan: Plan, failed: Mapping[str, str], dropped: Mapping[str, int]) -> dict[str, Any]:
    """The content of ablation.json, from the runs that are done; see `summarise`. Nothing is written."""
    spec = plan.spec
    scores, metric = plan.scores(), spec["metric"]
    base = scores[BASE]
    results, refused = compare_all(plan, scores)
    if plan.looks is not None:
        results = {arm: _over_looks(plan.looks, arm, result) for arm, result in results.items()}
    counted = [arm for arm in results if arm not in dropped]
    p_values = [result.p if (result := results[arm]) else None for arm in counted]
    adjusted = dict(zip(counted, holm(p_values), strict=True))
    strictest = corrected_level(len(counted)) if counted else LEVEL
    arms = []
    for arm, result in results.items():
        runs, both = scores[arm], sorted(scores[arm].keys() & base.keys())
        images = _bootstrap(plan, arm) if plan.test == "folds" and metric == "accuracy" and both else None
        outcome = "not computed"
        if arm in dropped:
            outcome = "given up"
        elif result is not None:
            outcome = verdict(
                result, adjusted[arm], spec["margin"], records.METRICS[metric].higher_is_better, images=images
            )
        arms.append(
            {
                "name": arm,
                "changes": spec["arms"][arm],
                "per_fold": [
                    _one(runs[index], metric) | {"difference": runs[index][metric] - base[index][metric]}
                    for index in both
                ],
                "mean": mean_of(runs, metric) if runs else None,
                "difference": result.mean_difference if result else None,
                "ci95": [result.low, result.high] if result and result.low is not None else None,
                "p": result.p if result else None,
                "p_holm": adjusted.get(arm),
                "effect_size": result.effect_size if result else None,
                "detectable": _detectable(plan, result, strictest) if result and result.std else None,
                "images_std": result.images_std if result else None,
                "trainings_std": result.trainings_std if result else None,
                "rest_std": result.rest_std if result else None,
                "bootstrap95": images,
                "verdict": outcome,
                "seconds": mean_of(runs, "seconds") if runs else None,
                "missing": plan.until_of(arm) - len(both) if arm not in dropped else 0,
                "stopped": _stopped(plan, arm),
            }
        )
    smallest = [arm["detectable"] for arm in arms if arm["detectable"] and arm["name"] not in dropped]
    base_config = plan.arms[BASE]["config"]
    changed = dict.fromkeys(key for changes in spec["arms"].values() for key in changes)
    return {
        "question": spec["question"],
        "expected": spec["expected"],
        "metric": metric,
        **{key: spec[key] for key in ("folds", "repeats", "seeds", "margin", "choices", "choice_epochs")},
        "level": LEVEL,
        "data": DataConfig.model_validate(base_config["data"]).short_name,
        "n_images": len(plan.folds["pool"]),
        "n_groups": len(set(groups)) if (groups := plan.folds.get("groups")) else None,
        "epochs": base_config["train"]["epochs"],
        "base": {
            "name": BASE,
            "changes": {key: _value(base_config, key) for key in changed},
            "mean": mean_of(base, metric) if base else None,
            "std": float(np.std([one[metric] for one in base.values()], ddof=1)) if len(base) > 1 else None,
            "seconds": mean_of(base, "seconds") if base else None,
            "per_fold": [_one(one, metric) for one in base.values()],
        },
        "arms": arms,
        "detectable": float(np.median(smallest)) if smallest else None,
        "dropped": dict(dropped),
        "failed": {**failed, **refused},
        "test": plan.test,
        "looks": None if plan.looks is None else len(plan.looks),
        "budget": spec["budget"],
    }


def _stopped(plan: Plan, arm: str) -> dict[str, Any] | None:
    """When and why a look has stopped an arm, and the nominal level of its interval; None where none has."""
    if plan.looks is None or (found := interim.stopped_of(plan.looks, arm)) is None:
        return None
    because, look, done = found
    return {"because": because, "look": look, "trainings": done, "level": interim.level_of(plan.looks, arm, 1 - LEVEL)}


def compare_all(plan: Plan, scores: Scores) -> tuple[dict[str, Comparison | None], dict[str, str]]:
    """The comparison of each arm with the base, None where there is none, and why it cannot be had, where that is so.

    Where there were looks, the interval is that of the arm's last one.
    """
    results: dict[str, Comparison | None] = {}
    refused: dict[str, str] = {}
    trainings = plan.differences_of_all(plan.spec["metric"])
    known = [moments(of) for of in trainings.values() if not isinstance(of, UserError) and cells(of) > 1]
    for arm, of in trainings.items():
        if isinstance(of, UserError):  # what the other arms found must not be lost
            results[arm], refused[arm] = None, str(of)
        else:
            level = interim.level_of(plan.looks or (), arm, 1 - LEVEL)
            # Arms that stopped before this one know less of the noise than it does itself.
            shared = shared_excess([one for one in known if one.cells >= cells(of)])
            results[arm] = _compare(plan, scores[arm], scores[BASE], of, shared, level)
    return results, refused


def _over_looks(looks: interim.Looks, arm: str, found: Comparison | None) -> Comparison | None:
    """The comparison with p-values that hold over all looks; without a test where there was none."""
    if found is None or found.p is None:
        return found
    if (p := interim.p_of(looks, arm)) is None:
        return replace(found, p=None, low=None, high=None, p_equivalent=None, equivalent=None)
    return replace(found, p=p, p_equivalent=interim.p_equivalent_of(looks, arm))


def _compare(
    plan: Plan,
    arm: Mapping[int, Any],
    base: Mapping[int, Any],
    trainings: Sequence[Training],
    shared: Shared | None,
    level: float,
) -> Comparison | None:
    """The study's test over the runs that both have done; None where these are of fewer than two folds."""
    metric, margin = plan.spec["metric"], plan.spec["margin"]
    of_fold: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for index in sorted(arm.keys() & base.keys()):
        of_fold[index % len(plan.folds["divisions"])].append((arm[index][metric], base[index][metric]))
    if len(of_fold) < 2:
        return None
    if plan.test == "images":
        return compare_by_image(trainings, margin, level, shared)
    # Several seeds of a fold make one pair: they share the fold's images and are not independent evidence.
    ours, theirs = np.array([np.mean(values, axis=0) for values in of_fold.values()]).T.tolist()
    return paired_comparison(ours, theirs, 1 / plan.spec["folds"], margin, level)


def _detectable(plan: Plan, found: Comparison, level: float) -> float:
    """The difference that another study like this one would find in 8 of 10 cases."""
    if found.images_std is None or found.trainings_std is None:
        return smallest_detectable(found.std, found.n, 1 / plan.spec["folds"], level)
    runs = found.n * plan.spec["seeds"]
    return detectable(found.images_std, found.trainings_std, found.units, runs, level, cells=found.n)


def _one(record: Mapping[str, Any], metric: str) -> dict[str, Any]:
    return {key: record[key] for key in ("fold", "repeat", "seed", "seconds", "chosen")} | {"value": record[metric]}


def _bootstrap(plan: Plan, arm: str) -> list[float]:
    """The bootstrap interval over images of the difference in accuracy; each image's difference is a mean over runs."""
    trainings = plan.differences(arm, "accuracy")
    _, image, times = np.unique(
        np.concatenate([one.images for one in trainings]), return_inverse=True, return_counts=True
    )
    sums = np.bincount(image, np.concatenate([one.values for one in trainings]))
    return list(bootstrap_interval(sums / times, np.random.default_rng(0)))


def _write_tables(run: RunDir, record: Mapping[str, Any]) -> None:
    rows = text.table(record)
    files.write_text(run.path / "ablation.csv", files.as_csv(rows))
    files.write_text(run.path / "ablation.tex", text.as_latex(rows, record["question"] or run.name))
    paragraphs = text.conclusion(record).replace("\n", "\n\n")
    files.write_text(run.path / "conclusion.md", f"{paragraphs}\n\n{text.methods(record)}\n")
    if figure := forest(record):
        run.figures.mkdir(exist_ok=True)
        for suffix in ("png", "svg"):
            save(figure, run.figures / f"forest.{suffix}")


def forest(record: Mapping[str, Any]) -> Figure | None:
    """The forest plot of an ablation.json, the best arm first; None where no arm has a difference."""
    shown = text.unit(record["metric"])
    plotted = [
        (arm["name"], *(None if value is None else shown.scale * value for value in values), arm["verdict"])
        for arm in text.ranked(record)
        if arm["difference"] is not None
        for values in [(arm["difference"], *(arm["ci95"] or (None, None)))]
    ]
    if not plotted:
        return None
    margin = shown.scale * record["margin"] if record["margin"] else None
    label = text.heading(records.METRICS[record["metric"]].label, shown.written_out)
    return forest_plot(plotted, label, margin, shown.digits)
