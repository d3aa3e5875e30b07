"""`auto`: the best classifier that a few minutes make, and an estimate by images that chose nothing.

Candidates race on inner validation images alone, within each fold or, with many images, beside a part that is set
aside; the winner is trained on all but that part. The test split stays sealed. What a killed race has is on disk.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convsmith import files, records, rundir
from convsmith.config import Layer, RunConfig, merge, read_run_config, validate
from convsmith.contracts import hw
from convsmith.data.dataset import Dataset
from convsmith.data.sources import cache_folder
from convsmith.errors import UserError
from convsmith.events import EpochEnd, Finished, Interrupted, Listener, Note, RaceStarted, RaceWon, counter, nobody
from convsmith.prediction.calibration import fit_temperature
from convsmith.prediction.evaluation import evaluation, prediction_rows
from convsmith.prediction.metrics import accuracy_interval
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts, set_threads
from convsmith.studies import auto_data, auto_plan, own, study
from convsmith.studies.auto_candidates import SMALL, Candidate, finetuned, probes, small_nets
from convsmith.studies.auto_keys import decided
from convsmith.studies.auto_race import CLOSING, FIXED, RACE, Race
from convsmith.studies.auto_train import start_or_resume
from convsmith.studies.book import worth
from convsmith.studies.folds import Fold, cut, make_folds
from convsmith.training.gather import open_data
from convsmith.training.loop import epochs
from convsmith.training.own import NO_PARTS, Parts
from convsmith.transfer import lookup
from convsmith.transfer.pretrained import expected_input

MOST_MINUTES = 10_000
INNER_VAL = 0.2  # of the images that a candidate may see
FINAL_VAL = 0.1  # of all images, after an estimate out of fold: the curve of the last training, which chooses nothing
AUTO = RunDir(Path()).auto.name
WINNER = "winner"  # the folder of the last training, until its files become those of the race's own directory


class _DataChanged(UserError):
    """The data of a race are not those that it was started with, and nothing of it was changed."""


@dataclass(frozen=True)
class AutoResult:
    """The end of a race; `record` is the content of auto.json. ``convsmith.load(result)`` opens the winner."""

    directory: Path
    record: Mapping[str, Any]

    @property
    def estimate(self) -> dict[str, Any]:
        """`how`, `n`, `accuracy`, `interval` and all `scores`, by images that chose nothing."""
        return dict(self.record["estimate"])

    @property
    def sentence(self) -> str:
        """The estimate in one sentence."""
        return str(self.record["estimate"]["sentence"])

    def table(self) -> list[dict[str, Any]]:
        """One row for each candidate, in the order of the race."""
        return auto_plan.standings(self.record)

    def __fspath__(self) -> str:
        return str(self.directory)

    def __repr__(self) -> str:
        return f"AutoResult({str(self.directory)!r}, {self.sentence})"

    def _repr_html_(self) -> str:
        return study.as_html(self.sentence, self.table())


def auto(
    config: RunConfig,
    parts: Parts = NO_PARTS,
    *,
    minutes: float = 5.0,
    name: str | None = None,
    runs_dir: Path = Path("runs"),
    listener: Listener = nobody,
    began: float | None = None,
) -> AutoResult:
    """Race for `minutes`, from ``time.monotonic() == began`` on, or go on with the race of this name or config.

    `config` holds the data, the seed and the device; what the race decides must be left out. Raises UserError for
    invalid input, and Stopped where a signal ended it after everything was saved.
    """
    began = time.monotonic() if began is None else began
    if not 0 < minutes <= MOST_MINUTES:
        raise UserError(f"--minutes {minutes:g}: must be above 0 and at most {MOST_MINUTES:,}")
    for key in decided():
        section, _, setting = key.partition(".")
        if setting in getattr(config, section).model_fields_set:
            raise UserError(f"auto decides {key} itself: leave it out, or use `convsmith train`")
    if config.data.val_fraction == 0:
        raise UserError(
            "auto compares and estimates by val images, of which data.val_fraction 0 leaves none: leave it out"
        )
    config = own.named(config, parts)
    given = config.model_dump(mode="json", exclude_unset=True)
    spec: dict[str, Any] = {"kind": "auto", "config": given}
    if parts.source is not None:  # arrays have one name, whatever is in them
        spec["arrays"] = parts.source.fingerprint
    if name is not None and (finished := _finished(RunDir(runs_dir / name), given)) is not None:
        return finished
    run = _existing(runs_dir, name, spec)
    if run is not None:
        try:
            return resume(run, parts, listener=listener, began=began, minutes=minutes)
        except _DataChanged as error:
            if name is not None:
                raise
            listener(Note(f"'{run.path}' was interrupted and cannot be continued, so a new race begins: {error}"))
    run = _start(config, spec, parts, minutes, name, runs_dir, listener, began)
    return resume(run, parts, listener=listener)  # what was spent before is in auto.json


def _finished(run: RunDir, given: Mapping[str, Any]) -> AutoResult | None:
    """The result of a race that has ended before with the same settings."""
    if not run.auto.exists() or run.study.exists():
        return None
    record = records.read(run.auto, records.Auto)
    return AutoResult(run.path, record) if record["config"] == given else None


def _existing(runs_dir: Path, name: str | None, spec: Mapping[str, Any]) -> RunDir | None:
    """The race that goes on: the one with this name, or without a name the last one that was stopped."""
    if name is not None:
        if (run := RunDir(runs_dir / name)).study.exists() and study.read_spec(run) == spec:
            return run
        rundir.refuse_taken(runs_dir, name)
        return None
    return rundir.stopped_in(runs_dir, lambda run: run.study.exists() and rundir.read_study(run) == spec)


def _start(
    config: RunConfig,
    spec: Mapping[str, Any],
    parts: Parts,
    minutes: float,
    name: str | None,
    runs_dir: Path,
    listener: Listener,
    began: float,
) -> RunDir:
    """Look at the data, divide them, and create the directory."""
    config = _skipping(config)
    dataset, device = open_data(config, parts, counter(listener, "decoding"))
    checked = auto_data.check(dataset.config, parts.source, dataset, listener)
    least = auto_plan.least_seconds(time.monotonic() - began, FIXED, CLOSING)
    if 60 * minutes < least:
        raise UserError(
            f"--minutes {minutes:g} are too few: reading these data, two short trainings and a report take about "
            f"{math.ceil(least)} s here; give --minutes {math.ceil(least / 6) / 10:g} or more"
        )
    pool, groups = dataset.pool(), auto_data.groups_of(dataset, checked.together)
    smallest = int(np.bincount(pool.labels, minlength=len(dataset.classes)).min())
    folds = auto_plan.folds_for(len(pool), smallest, 60 * minutes)
    divided = _divided(dataset, folds, groups)
    record = {
        "config": spec["config"],
        "minutes": minutes,
        "seconds": time.monotonic() - began,
        "data": list(checked.lines),
        "side": checked.side,
        "together": [list(ids) for ids in checked.together],
        "images": len(pool),
        "folds": folds,
        "candidates": [],
        "running": None,
        "winner": None,
        "temperature": None,
        "stopped_because": None,
        "estimate": None,
    }
    written: dict[str, study.Written] = {
        study.FOLDS: (records.Folds, study.folds_record(dataset, divided)),
        AUTO: (records.Auto, record),
    }
    resolved = config.with_values(train={"device": device.type, "threads": set_threads(config.train.threads)})
    return study.create(runs_dir, name, rundir.default_name(dataset.config.short_name, "auto"), spec, resolved, written)


def _skipping(config: RunConfig) -> RunConfig:
    """Files that cannot be decoded are left out, and named, unless the user wants it otherwise."""
    return config if "on_error" in config.data.model_fields_set else config.with_values(data={"on_error": "skip"})


def _divided(dataset: Dataset, folds: int, groups: Any) -> list[Fold]:
    """The folds of the pool, or a single one whose held-out images are the validation split of the data."""
    pool, seed = dataset.pool(), dataset.config.split_seed
    if folds:
        return make_folds(pool.labels, folds, 1, INNER_VAL, seed, dataset.classes, groups)
    aside = np.isin(pool.rows, dataset.val.rows)
    train, val = cut(pool.labels, np.flatnonzero(~aside), INNER_VAL, seed, dataset.classes, groups)
    return [Fold(1, 1, train, val, np.flatnonzero(aside))]


def resume(
    run: RunDir,
    parts: Parts = NO_PARTS,
    *,
    jobs: int = 1,
    backend: str = "local",
    listener: Listener = nobody,
    began: float | None = None,
    minutes: float | None = None,
) -> AutoResult:
    """Go on with a race: candidates that have ended are not run again, and the time that was spent counts.

    `minutes` replaces the budget that the race was started with.
    `jobs` and `backend` are those of other studies: the candidates of a race run in turn, in this process.
    """
    began = time.monotonic() if began is None else began
    spec = study.read_spec(run)
    with run.lock(), Interrupts() as interrupts:
        record = records.read(run.auto, records.Auto)
        before = float(record["seconds"])
        if record["estimate"] is None:  # else the race has ended, and the winner's files are on their way up
            config = read_run_config(run.config)
            given = _skipping(validate(spec["config"]))
            dataset, _ = open_data(given, parts, counter(listener, "decoding"))
            kept = records.read(run.path / study.FOLDS, records.Folds)
            if dataset.hash != kept["hash"]:
                raise _DataChanged(f"the data of race '{run.path}' have changed since it was started: start a new one")
            record["minutes"] = record["minutes"] if minutes is None else minutes
            groups = auto_data.groups_of(dataset, record["together"])
            device = {"device": config.train.device} if "device" not in given.train.model_fields_set else {}
            race = Race(
                run,
                given.with_values(train=device),
                parts,
                dataset,
                study.recorded_folds(kept),
                groups,
                record,
                began,
                interrupts,
                listener,
            )
            _race(race)
            _train_winner(race)
            _write_estimate(race)
        _move_up(run)
        from convsmith.report.run import after_training

        after_training(run, listener, parts.source, parts.module)
        record["seconds"] = before + time.monotonic() - began
        return AutoResult(run.path, records.write(run.auto, records.Auto, record))


def _race(race: Race) -> None:
    """Run the candidates, cheap ones first, until all have run or no more fit into the time."""
    record, config = race.record, race.config
    if record["winner"] is not None:
        return
    backbones = {
        model: (file, min(hw(spec.size)))
        for model, file in lookup.all_at_hand(cache_folder(config.data)).items()
        if (spec := expected_input(model)) is not None
    }
    if not backbones and record["side"] > SMALL:
        race.listener(Note(_lacking(cache_folder(config.data))))
    held_out = len(race.folds[0].held_out)
    race.listener(
        RaceStarted(
            directory=race.run.path,
            source=config.data.title,
            lines=tuple(record["data"]),
            images=record["images"],
            folds=record["folds"],
            held_out=held_out,
            sealed=race.dataset.test_size,
            minutes=record["minutes"],
            backbones=len(backbones),
            spent=float(record["seconds"]) if record["candidates"] else 0.0,
        )
    )
    nets = small_nets(record["side"], len(race.folds[0].train))
    heads = probes(backbones, record["side"])
    order = [*nets, *heads] if record["side"] <= SMALL else [*heads, *nets]
    for number, candidate in enumerate(order):
        race.attempt(candidate, len(order) - number + bool(heads))
    if best := _best_probe(race):
        race.attempt(finetuned(*best), 1)
    raced = race.raced()
    if not raced:
        reasons = "; ".join(f"{entry['name']}: {entry['reason']}" for entry in record["candidates"])
        raise UserError(f"no candidate could be run on '{config.data.title}' ({reasons})")
    record["winner"] = winner = auto_plan.best(raced)
    labels = race.pool.labels
    kept = [(race.kept(winner, number), fold) for number, fold in enumerate(race.folds)]
    logits = np.concatenate([trained.val for trained, _ in kept if trained is not None])
    record["temperature"] = fit_temperature(logits, np.concatenate([labels[fold.val] for _, fold in kept]))
    skipped = sum(entry["state"] == "skipped" for entry in record["candidates"])
    record["stopped_because"] = f"{skipped} candidates did not fit" if skipped else "all candidates have run"
    race.save()


def _lacking(cache: Path) -> str:
    """Why a race on a machine without pretrained weights has none, what they are worth, and how to get the first."""
    origin = lookup.origin(lookup.PREFERRED[0])
    assert origin is not None
    return (
        "none of the pretrained weights that photographs want is on this machine, and a race downloads none; they were "
        f"{worth()}: {lookup.by_hand(lookup.PREFERRED[0], origin.address, cache)}"
    )


def _best_probe(race: Race) -> tuple[Candidate, float] | None:
    """The probe with the lowest loss, from which a finetuning starts, and its penalty."""
    scores = {name: found for name, found in race.raced().items() if race.entry(name)["family"] == "probe"}
    if not scores:
        return None
    entry = race.entry(auto_plan.best(scores))
    return Candidate(entry["name"], "probe", entry["layer"]), entry["layer"]["transfer"]["head_l2"]


def _train_winner(race: Race) -> None:
    """Train the winner on all images but those that its estimate needs."""
    record, directory = race.record, race.run.path / WINNER
    layer: Layer = merge(race.entry(record["winner"])["layer"], {"train": {"temperature": record["temperature"]}})
    ids, labels = race.pool.ids, race.pool.labels
    if race.crossed:
        every = np.arange(len(labels))
        train, val = cut(labels, every, FINAL_VAL, race.config.data.split_seed, race.dataset.classes, race.groups)
    else:
        fold = race.folds[0]
        train, val = np.sort(np.concatenate([fold.train, fold.val])), fold.held_out
    race.listener(RaceWon(record["winner"], record["stopped_because"], len(train)))
    if RunDir(directory).summary.exists():
        return
    set_threads(race.threads)
    splits = {"train": [ids[row] for row in train], "val": [ids[row] for row in val]}
    experiment = start_or_resume(race.config_of(layer), race.parts, splits, directory)
    tell = counter(race.listener, "winner: training")
    for event in epochs(experiment, race.interrupts):
        if isinstance(event, EpochEnd):
            tell(len(train) * event.row["epoch"] // experiment.config.train.epochs, len(train))
        if isinstance(event, Interrupted):
            race.stop_if_interrupted()
        if isinstance(event, Finished):  # its directory will be that of the race
            records.write(RunDir(directory).summary, records.Summary, {**event.summary, "name": race.run.name})


def _write_estimate(race: Race) -> None:
    """Write auto.json with the estimate, by images that chose nothing, and after folds predictions-oof.csv."""
    record, classes, labels = race.record, race.dataset.classes, race.pool.labels
    if race.crossed:
        logits = np.empty((len(labels), len(classes)))
        numbers = np.empty(len(labels), dtype=np.int64)
        for number, fold in enumerate(race.folds):
            # The choice within the fold, by what the fold has seen: its held-out images chose nothing.
            scores = race.on_fold(number)
            name = auto_plan.best(scores)
            kept = race.kept(name, number)
            assert kept is not None
            assert kept.held_out is not None
            logits[fold.held_out] = kept.held_out / scores[name][0].temperature
            numbers[fold.held_out] = fold.number
        found, how = evaluation(labels, logits, classes), auto_plan.OUT_OF_FOLD
        rows = prediction_rows(race.pool.ids, logits, classes, labels)
        table = [row | {"repeat": 1, "fold": int(number)} for row, number in zip(rows, numbers, strict=True)]
        files.write_text(race.run.predictions("oof"), files.as_csv(table))
    else:
        found = records.read(RunDir(race.run.path / WINNER).evaluation("val"), records.Evaluation)
        how = auto_plan.ON_VAL
    record["estimate"] = {
        "how": how,
        "n": found["n"],
        "accuracy": found["accuracy"],
        "interval": list(accuracy_interval(found)),
        "scores": records.metric_values(found),
        "sentence": auto_plan.sentence(found["accuracy"], found["n"], how),
    }
    race.save()


def _move_up(run: RunDir) -> None:
    """Make the directory of the race that of the winner's run; what a killed process has left is moved later."""
    winner = RunDir(run.path / WINNER)
    if winner.log_file.exists():
        for line in winner.log_file.read_text(encoding="utf-8").splitlines():
            run.log(f"winner: {line}")
        winner.log_file.unlink()
    if winner.path.exists():
        for entry in sorted(winner.path.iterdir()):
            if entry.name == ".lock":
                continue
            target = run.path / entry.name
            if target.is_dir() and entry.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)
        shutil.rmtree(winner.path)
    shutil.rmtree(run.path / RACE, ignore_errors=True)
    (run.path / study.STARTED).unlink(missing_ok=True)
    run.study.unlink(missing_ok=True)  # the last: until then, a resume comes here again
