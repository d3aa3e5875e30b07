"""Ablation studies: every arm on the same folds with the same seeds, so that differences are paired.

`comparison` holds the statistics; this module starts and resumes the runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith.config import Layer, RunConfig, validate
from convsmith.events import AblationStarted, Listener, Note, nobody
from convsmith.files import write_text
from convsmith.records import METRICS, Folds
from convsmith.records import Arms as ArmsFile
from convsmith.records import Looks as LooksFile
from convsmith.rundir import RunDir
from convsmith.studies import backends, course, own, study, text
from convsmith.studies.comparison import ARMS, LOOKS, Plan, forest, read_plan, summarise
from convsmith.studies.config import BASE, StudyConfig, changes, choices_of
from convsmith.studies.crossval import divide
from convsmith.studies.fold_job import FoldJob
from convsmith.studies.power import Design, known_of, power, units_of
from convsmith.studies.preparation import (
    prepare_arms,
    refuse_budget,
    resolved,
    seconds_per_epoch,
    sized,
    trainings,
)
from convsmith.training import setup
from convsmith.training.own import NO_PARTS, Parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AblationResult:
    """How the arms compare with the base; `record` is the content of ablation.json."""

    directory: Path
    record: Mapping[str, Any]

    @property
    def base(self) -> dict[str, Any]:
        """The base: its mean, its standard deviation, and one value per run."""
        return dict(self.record["base"])

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """Each arm by its name: mean, difference, ci95, p, p_holm, verdict, and its other keys in ablation.json."""
        return {arm["name"]: dict(arm) for arm in self.record["arms"]}

    @property
    def verdicts(self) -> dict[str, str]:
        """Each arm's verdict: helps, hurts, equivalent, no difference shown, given up, or not computed."""
        return {name: arm["verdict"] for name, arm in self.arms.items()}

    @property
    def best(self) -> str:
        """The arm that helps most, or the base where none is shown to help."""
        helping = [arm for arm in self.record["arms"] if arm["verdict"] == "helps"]
        sign = METRICS[self.record["metric"]].sign
        return str(max(helping, key=lambda arm: sign * arm["difference"])["name"]) if helping else BASE

    @property
    def failed(self) -> dict[str, str]:
        """Why runs failed, by name."""
        return dict(self.record["failed"])

    @property
    def conclusion(self) -> str:
        """What the study shows and what it does not, in words, one statement per line."""
        return text.conclusion(self.record)

    def table(self) -> list[dict[str, str]]:
        """The base's row, then one row per arm, the best difference first; column names include the units."""
        return text.table(self.record)

    def forest(self) -> Figure | None:
        """Each arm's difference with its interval; None where no arm has a difference."""
        return forest(self.record)

    def __repr__(self) -> str:
        return f"AblationResult({str(self.directory)!r}, {self.verdicts})"

    def _repr_html_(self) -> str:
        return study.as_html(self.directory, self.table())


def ablate(
    config: StudyConfig,
    flags: Layer | None = None,
    parts: Parts = NO_PARTS,
    *,
    folds: int | None = None,
    repeats: int | None = None,
    seeds: int | None = None,
    jobs: int = 1,
    backend: str = "local",
    budget: float | None = None,
    name: str | None = None,
    runs_dir: Path = Path("runs"),
    listener: Listener = nobody,
) -> AblationResult:
    """Start the ablation study that a file or `config.StudyConfig` describes, or continue the one with this name.

    `flags` change the base, and so every arm; `folds`, `repeats` and `seeds` replace the study's numbers. With a
    `budget` in minutes the study is looked at on its way: see `interim`. With `parts` of the user's own, the runs take
    place in this process, one at a time. Raises UserError for invalid input, and Stopped where a signal ended the study
    after everything was saved. Runs that fail are listed in the result's `failed`.
    """
    config = sized(config, folds, repeats, seeds)
    study.refuse_jobs(jobs, backend)
    refuse_budget(budget)
    arms = resolved(config, flags, parts)
    spec = {
        "kind": "ablate",
        "question": config.question,
        "expected": dict(config.expected),
        **{key: getattr(config, key) for key in ("folds", "repeats", "seeds", "metric", "margin")},
        "budget": budget,
        "choices": choices_of(config, arms[BASE].model_dump(mode="json")),
        "choice_epochs": config.choose.epochs if config.choose else 0,
        "base": arms[BASE].model_dump(mode="json"),
        "arms": {arm: changes(arms[BASE], arms[arm]) for arm in arms if arm != BASE},
        "test": "images",
        "stopping": None if budget is None else "looks",
        **own.optimizer_of(parts),
    }
    run = study.existing(runs_dir, name, spec, listener)
    if run is None:
        backends.runner_for(backend, parts)
        max_workers = min(own.workers(jobs, backend, parts, nobody), trainings(config))
        run = _create(arms, spec, parts, max_workers, runs_dir, name, listener)
        own.note_weights(parts, listener)
    return resume(run, parts, jobs=jobs, backend=backend, listener=listener)


def _create(
    arms: Mapping[str, RunConfig],
    spec: Mapping[str, Any],
    parts: Parts,
    max_workers: int,
    runs_dir: Path,
    name: str | None,
    listener: Listener,
) -> RunDir:
    prepared = prepare_arms(arms, parts, max_workers, listener)
    base = prepared[BASE]
    divisions = divide(base.dataset, base.config, spec["folds"], spec["repeats"])
    files: dict[str, study.Written] = {
        study.FOLDS: (Folds, study.folds_record(base.dataset, divisions)),
        ARMS: (
            ArmsFile,
            {
                arm: {
                    "config": ready.config.model_dump(mode="json"),
                    "hash": ready.dataset.hash,
                    "seconds_per_epoch": seconds_per_epoch(ready, divisions),
                }
                for arm, ready in prepared.items()
            },
        ),
    }
    if spec["stopping"]:
        files[LOOKS] = (LooksFile, {"workers": max_workers, "looks": []})
    default_name = f"{setup.default_name(base.config)}-ablation"
    run = study.create(runs_dir, name, default_name, spec, base.config, files)
    for arm, ready in prepared.items():
        write_text(run.path / "arms" / arm / "config.yaml", ready.config.to_yaml())
    listener(_started(read_plan(run), base, runs_dir, max_workers))
    return run


def resume(
    run: RunDir, parts: Parts = NO_PARTS, *, jobs: int = 1, backend: str = "local", listener: Listener = nobody
) -> AblationResult:
    """Run what has not been done yet, and write the comparison of all arms."""
    plan = read_plan(run)
    own.refuse_other(validate(plan.arms[BASE]["config"]), plan.spec, parts, run.path)
    study.note_test(run, plan.spec, listener)
    max_workers = min(own.workers(jobs, backend, parts, listener), plan.runs * len(plan.arms))
    runner, how = backends.runner_for(backend, parts), own.how_to_resume(run.path, parts)

    def train(jobs: Sequence[FoldJob]) -> dict[str, str]:
        return backends.run_folds(run, jobs, max_workers, runner, how, listener)

    with run.lock():
        dropped: dict[str, int] = {}
        if plan.spec["budget"] is None:
            failed = course.whole(plan, train)
        elif plan.looks is None:
            listener(Note("this study goes on as in its own version, which gives up the worse arms to keep a budget"))
            failed, dropped = course.halved(plan, train, max_workers, listener)
        else:
            failed = course.looked_at(plan, train, listener)
            plan = read_plan(run)
        return AblationResult(run.path, summarise(plan, failed, dropped))


def _started(plan: Plan, base: setup.Prepared, runs_dir: Path, max_workers: int) -> AblationStarted:
    spec, known = plan.spec, known_of(runs_dir, plan.spec["metric"], base.dataset)
    arms, units = len(plan.arms) - 1, units_of(base.dataset)
    design = Design(spec["folds"], spec["repeats"], spec["seeds"], arms, *units)
    seconds = 0.0
    for arm in plan.arms.values():
        epochs = arm["config"]["train"]["epochs"] + len(spec["choices"]) * spec["choice_epochs"]
        seconds += arm["seconds_per_epoch"] * epochs * plan.runs
    return AblationStarted(
        directory=plan.run.path,
        question=spec["question"],
        source=base.config.data.title,
        sealed=len(plan.folds["test"]),
        runs=plan.runs,
        max_workers=max_workers,
        seconds=seconds / max_workers,
        arms=len(plan.arms),
        folds=spec["folds"],
        repeats=spec["repeats"],
        seeds=spec["seeds"],
        images=len(plan.folds["pool"]),
        detectable=design.finds(known) if known else None,
        power=power(design, known, spec["metric"]) if known else None,
        budget=spec["budget"],
    )
