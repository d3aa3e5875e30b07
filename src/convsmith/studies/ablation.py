"""Ablation studies: every arm on the same folds with the same seeds, so that differences are paired.

`comparison` holds the statistics; this module starts and resumes the runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith.config import Layer, RunConfig, validate
from convsmith.errors import RunFailed, UserError
from convsmith.events import AblationStarted, ArmGivenUp, Listener, Note, counter, nobody
from convsmith.files import write_text
from convsmith.records import METRICS, Folds
from convsmith.records import Arms as ArmsFile
from convsmith.rundir import RunDir
from convsmith.studies import backends, own, study, text
from convsmith.studies.comparison import ARMS, LEVEL, Plan, forest, mean_of, read_plan, summarise
from convsmith.studies.config import BASE, MOST_FOLDS, StudyConfig, arms_of, changes, choices_of, count_arms
from convsmith.studies.crossval import divide
from convsmith.studies.variance import ASSUMED_TRAININGS_STD, assumed_images_std, detectable
from convsmith.training import setup
from convsmith.training.config import AUTO
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
    jobs: int = 1,
    backend: str = "local",
    budget: float | None = None,
    name: str | None = None,
    runs_dir: Path = Path("runs"),
    listener: Listener = nobody,
) -> AblationResult:
    """Start the ablation study that a file or `config.StudyConfig` describes, or continue the one with this name.

    `flags` change the base, and so every arm; `folds` replaces the study's number. With a `budget` in minutes, the arms
    that look worst are given up early. With `parts` of the user's own, the runs take place in this process, one at a
    time. Raises UserError for invalid input, and Stopped where a signal ended the study after everything was saved.
    Runs that fail are listed in the result's `failed`.
    """
    if folds is not None:
        study.within("folds", folds, 2, MOST_FOLDS)
        config = config.model_copy(update={"folds": folds})
    study.refuse_jobs(jobs, backend)
    if budget is not None and not 0 < budget < float("inf"):
        raise UserError(f"--budget {budget:g}: must be minutes above 0")
    wanted = config.folds * config.repeats * config.seeds * (1 + count_arms(config))
    study.refuse_too_many(config.folds, config.repeats, wanted)
    arms = {arm: own.named(known, parts) for arm, known in arms_of(config, flags or {}).items()}
    changed = {arm: changes(arms[BASE], arms[arm]) for arm in arms if arm != BASE}
    for arm, keys in changed.items():
        own.refuse_unused(keys, parts, f"arm '{arm}'")
    if config.choose:
        own.refuse_unused(config.choose.hyperparameters, parts, "choose")
    spec = {
        "kind": "ablate",
        "question": config.question,
        "expected": dict(config.expected),
        **{key: getattr(config, key) for key in ("folds", "repeats", "seeds", "metric", "margin")},
        "budget": budget,
        "choices": choices_of(config, arms[BASE].model_dump(mode="json")),
        "choice_epochs": config.choose.epochs if config.choose else 0,
        "base": arms[BASE].model_dump(mode="json"),
        "arms": changed,
        "test": "images",
        **own.optimizer_of(parts),
    }
    run = study.existing(runs_dir, name, spec, listener)
    if run is None:
        backends.runner_for(backend, parts)
        runs = len(arms) * config.folds * config.repeats * config.seeds
        max_workers = min(own.workers(jobs, backend, parts, nobody), runs)
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
    def prepare(arm: str, config: RunConfig) -> setup.Prepared:
        try:
            return setup.prepare(
                study.threads_for(config, max_workers), own.fresh(parts), counter(listener, "decoding")
            )
        except (UserError, RunFailed) as error:
            raise type(error)(f"arm '{arm}': {error}" if arm != BASE else str(error)) from None

    # The arms must differ in what they change alone: they share the precision that is the faster one for the base,
    base = prepare(BASE, arms[BASE])
    precision = {"precision": base.config.train.precision}
    arms = {arm: c.with_values(train=precision) if c.train.precision == AUTO else c for arm, c in arms.items()}
    prepared = {arm: base if arm == BASE else prepare(arm, config) for arm, config in arms.items()}
    if automatic := [arm for arm, config in arms.items() if config.train.batch_size == AUTO]:
        # and the size that fits all of them.
        shared = min(prepared[arm].config.train.batch for arm in automatic)
        for arm in automatic:
            if prepared[arm].config.train.batch != shared:
                prepared[arm] = prepare(arm, arms[arm].with_values(train={"batch_size": shared}))
        listener(Note(f"train.batch_size auto: {shared}, with which each of these arms fits: {', '.join(automatic)}"))
    base = prepared[BASE]
    divisions = divide(base.dataset, base.config, spec["folds"], spec["repeats"])
    share = len(divisions[0].train) / len(base.dataset.train)
    files: dict[str, study.Written] = {
        study.FOLDS: (Folds, study.folds_record(base.dataset, divisions)),
        ARMS: (
            ArmsFile,
            {
                arm: {
                    "config": ready.config.model_dump(mode="json"),
                    "hash": ready.dataset.hash,
                    "seconds_per_epoch": (ready.seconds_per_epoch or 0.0) * share,
                }
                for arm, ready in prepared.items()
            },
        ),
    }
    default_name = f"{setup.default_name(base.config)}-ablation"
    run = study.create(runs_dir, name, default_name, spec, base.config, files)
    for arm, ready in prepared.items():
        write_text(run.path / "arms" / arm / "config.yaml", ready.config.to_yaml())
    listener(_started(read_plan(run), base.config.data.title, max_workers))
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
    with run.lock():
        alive, dropped = list(plan.arms), {}
        if plan.spec["budget"] is None:
            folds = [plan.job(arm, index) for index in range(plan.runs) for arm in alive]
            failed = backends.run_folds(run, folds, max_workers, runner, how, listener)
        else:
            failed = {}
            for index in range(plan.runs):
                folds = [plan.job(arm, index) for arm in alive]
                failed |= backends.run_folds(run, folds, max_workers, runner, how, listener)
                for arm in _given_up(plan, alive, index + 1, max_workers):
                    alive.remove(arm)
                    dropped[arm] = index + 1
                    listener(ArmGivenUp(arm, index + 1, plan.runs))
        return AblationResult(run.path, summarise(plan, failed, dropped))


def _given_up(plan: Plan, alive: Sequence[str], done: int, max_workers: int) -> list[str]:
    """Successive halving: the worse half of the arms, if running all of them would exceed the budget.

    The decision uses only the records of the first `done` runs of each arm, so a resumed study decides the same.
    """
    recorded = plan.scores()
    scores = {arm: {index: records[index] for index in records if index < done} for arm, records in recorded.items()}
    spent = sum(record["seconds"] for records in scores.values() for record in records.values())
    rate = {arm: mean_of(scores[arm], "seconds") for arm in alive if scores[arm]}
    left = sum(rate.values()) * (plan.runs - done)
    arms = [arm for arm in alive if arm != BASE and scores[arm]]
    if (spent + left) / max_workers <= 60 * plan.spec["budget"] or len(arms) < 2:
        return []
    metric = METRICS[plan.spec["metric"]]
    ranked = sorted(arms, key=lambda arm: metric.sign * mean_of(scores[arm], metric.name))
    return ranked[: len(arms) // 2]


def _started(plan: Plan, source: str, max_workers: int) -> AblationStarted:
    spec, smallest = plan.spec, None
    if spec["metric"] == "accuracy":
        level, cells = 1 - (1 - LEVEL) / (len(plan.arms) - 1), spec["folds"] * spec["repeats"]
        images = len(plan.folds["pool"]) if plan.folds.get("groups") is None else len(set(plan.folds["groups"]))
        smallest = detectable(
            assumed_images_std(), ASSUMED_TRAININGS_STD, images, cells * spec["seeds"], level, cells=cells
        )
    seconds = 0.0
    for known in plan.arms.values():
        epochs = known["config"]["train"]["epochs"] + len(spec["choices"]) * spec["choice_epochs"]
        seconds += known["seconds_per_epoch"] * epochs * plan.runs
    return AblationStarted(
        directory=plan.run.path,
        question=spec["question"],
        source=source,
        sealed=len(plan.folds["test"]),
        runs=plan.runs,
        max_workers=max_workers,
        seconds=seconds / max_workers,
        arms=len(plan.arms),
        folds=spec["folds"],
        repeats=spec["repeats"],
        seeds=spec["seeds"],
        images=len(plan.folds["pool"]),
        detectable=smallest,
        budget=spec["budget"],
    )
