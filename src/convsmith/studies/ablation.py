"""Ablation studies: every arm on the same folds with the same seeds, so that differences are paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from convsmith.config import Layer, RunConfig
from convsmith.display import EXIT_CODES, Display, duration
from convsmith.errors import UserError, command
from convsmith.files import write_text
from convsmith.records import METRICS
from convsmith.rundir import RunDir
from convsmith.studies import study, text
from convsmith.studies.comparison import RESULT, mean_of, summarise
from convsmith.studies.config import BASE, StudyConfig, arms_of, changes, choices_of
from convsmith.studies.crossval import divide
from convsmith.studies.follow import Ran, follow
from convsmith.studies.plan import ARMS, Plan, read_plan
from convsmith.studies.statistics import assumed_std, smallest_detectable
from convsmith.training import setup


def begin(
    config: StudyConfig,
    flags: Layer,
    at_once: int,
    backend: str,
    budget: float | None,
    runs_dir: Path,
    name: str | None,
    display: Display,
) -> int:
    """Start the study, or go on with the one of this name; the exit code of the process.

    `flags` change the base. With a `budget` in minutes, arms that look worst are given up early.
    """
    arms = arms_of(config, flags)
    at_once = min(at_once, len(arms) * config.folds * config.repeats * config.seeds)
    asked = {
        "kind": "ablate",
        "question": config.question,
        "expected": dict(config.expected),
        **{key: getattr(config, key) for key in ("folds", "repeats", "seeds", "metric", "margin")},
        "budget": budget,
        "choices": choices_of(config, arms[BASE].model_dump(mode="json")),
        "choice_epochs": config.choose.epochs if config.choose else 0,
        "base": arms[BASE].model_dump(mode="json"),
        "arms": {arm: changes(arms[BASE], arms[arm]) for arm in arms if arm != BASE},
    }
    run = study.existing(runs_dir, name, asked)
    if run is None:
        study.backend(backend)
        run = _create(arms, asked, at_once, runs_dir, name, display)
    return go_on(run, at_once, backend, display)


def _create(
    arms: Mapping[str, RunConfig],
    asked: Mapping[str, Any],
    at_once: int,
    runs_dir: Path,
    name: str | None,
    display: Display,
) -> RunDir:
    prepared = {}
    for arm, config in arms.items():
        try:
            prepared[arm] = setup.prepare(study.threads_for(config, at_once), progress=display.counting("decoding"))
        except UserError as error:
            raise UserError(f"arm '{arm}': {error}" if arm != BASE else str(error)) from None
    base = prepared[BASE]
    divisions = divide(base.dataset, base.config, asked["folds"], asked["repeats"])
    share = len(divisions[0].train) / len(base.dataset.train)
    files = {
        study.FOLDS: study.folds_record(base.dataset, divisions),
        ARMS: {
            arm: {
                "config": ready.config.model_dump(mode="json"),
                "hash": ready.dataset.hash,
                "seconds_per_epoch": (ready.seconds_per_epoch or 0.0) * share,
            }
            for arm, ready in prepared.items()
        },
    }
    stem = f"{setup.stem(base.config)}-ablation"
    run = study.create(runs_dir, name, stem, asked, base.config, files)
    for arm, ready in prepared.items():
        write_text(run.path / "arms" / arm / "config.yaml", ready.config.to_yaml())
    _opening(read_plan(run), len(divisions[0].held_out), at_once, display)
    return run


def go_on(run: RunDir, at_once: int, backend: str, display: Display) -> int:
    """Run what is not done yet, and write what the arms say together."""
    plan = read_plan(run)
    with run.lock():
        ran = Ran()
        alive, dropped = list(plan.arms), {}
        if plan.asked["budget"] is None:
            jobs = [plan.job(arm, place) for place in range(plan.runs) for arm in alive]
            follow(run, jobs, at_once, backend, display, ran)
        else:
            for place in range(plan.runs):
                follow(run, [plan.job(arm, place) for arm in alive], at_once, backend, display, ran)
                if ran.stopped:
                    break
                for arm in _given_up(plan, alive, place + 1, at_once):
                    alive.remove(arm)
                    dropped[arm] = place + 1
                    display.line(f"{arm}: given up after {place + 1} of {plan.runs} runs, to keep the budget")
        if ran.stopped:
            display.line(f"\nstopped, all saved; go on with: {command('resume', run.path)}")
            return EXIT_CODES[ran.stopped]
        record = summarise(plan, ran.failed, dropped)
        _show(run, record, display)
    return 1 if ran.failed else 0


def _given_up(plan: Plan, alive: Sequence[str], done: int, at_once: int) -> list[str]:
    """Successive halving: the worse half of the arms, where all of them would go over the budget.

    Decided from what the first `done` runs of each arm recorded alone: a study that is resumed decides the same.
    """
    recorded = plan.scores()
    scores = {arm: {place: records[place] for place in records if place < done} for arm, records in recorded.items()}
    spent = sum(record["seconds"] for records in scores.values() for record in records.values())
    rate = {arm: mean_of(scores[arm], "seconds") for arm in alive if scores[arm]}
    left = sum(rate.values()) * (plan.runs - done)
    arms = [arm for arm in alive if arm != BASE and scores[arm]]
    if (spent + left) / at_once <= 60 * plan.asked["budget"] or len(arms) < 2:
        return []
    metric = METRICS[plan.asked["metric"]]
    ranked = sorted(arms, key=lambda arm: metric.sign * mean_of(scores[arm], metric.name))
    return ranked[: len(arms) // 2]


def _opening(plan: Plan, held_out: int, at_once: int, display: Display) -> None:
    asked = plan.asked
    display.line(f"study   {plan.run.path}" + (f": {asked['question']}" if asked["question"] else ""))
    display.line(
        f"arms    {len(plan.arms)} with the base, {plan.runs} runs each "
        f"({asked['folds']} folds, {asked['repeats']} repeats, {asked['seeds']} seeds); "
        f"{len(plan.folds['pool']):,} images, {len(plan.folds['test']):,} test (sealed)"
    )
    seconds = 0.0
    for known in plan.arms.values():
        epochs = known["config"]["train"]["epochs"] + len(asked["choices"]) * asked["choice_epochs"]
        seconds += known["seconds_per_epoch"] * epochs * plan.runs
    display.line(f"needs   about {duration(seconds / at_once)} of training, {at_once} at once")
    if asked["metric"] == "accuracy":
        pairs = asked["folds"] * asked["repeats"]
        arms = len(plan.arms) - 1
        least = smallest_detectable(assumed_std(held_out), pairs, 1 / asked["folds"], level=1 - 0.05 / arms)
        display.line(
            f"power   differences of {100 * least:.1f} points and more would be found in 8 of 10 such studies, if "
            "about 20% of the images are right under one arm and wrong under the other"
        )
    if asked["budget"] is not None:
        display.line(
            f"budget  {asked['budget']:g} minutes: the worse half of the arms is given up whenever the rest would take "
            "longer. An arm that is given up gets no verdict, and looking early favours lucky arms"
        )


def _show(run: RunDir, record: Mapping[str, Any], display: Display) -> None:
    rows = text.table(record)
    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    display.line("")
    display.console.print(table)
    display.line("")
    display.line(text.conclusion(record))
    for name, reason in record["failed"].items():
        display.line(f"failed: {name}: {reason}")
    display.line(
        f"\nwritten: {run.path / RESULT}, ablation.csv, ablation.tex, conclusion.md, figures/forest.png, arms/"
    )
    if record["failed"]:
        display.line(f"next: {command('resume', run.path)}   (tries what failed again)")
    else:
        best = max(record["arms"], key=lambda arm: (arm["verdict"] == "helps", arm["difference"] or 0.0))
        name = best["name"] if best["verdict"] == "helps" else BASE
        display.line(f"next: {command('train', run.path / 'arms' / name / 'config.yaml')}")
