"""Tuning: the config's best values, searched by Optuna in trials that are ordinary runs without the test split."""

from __future__ import annotations

import signal
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from convsmith import files
from convsmith.config import Layer
from convsmith.data.dataset import open_dataset
from convsmith.display import EXIT_CODES, Display, duration
from convsmith.errors import UserError, command
from convsmith.plainyaml import to_yaml
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies import storage, study
from convsmith.studies.follow import progress_bar
from convsmith.studies.search import OPTUNA, Search, asked_of, read_search, record_of
from convsmith.studies.trials import LOCK_WAIT, TrialJob
from convsmith.studies.tune_config import TuneConfig, base_of, space_of
from convsmith.studies.tune_results import ranking, settings, show, summarise
from convsmith.training import setup

PRIVATE = 0o600  # of optuna.json: the URL of the database may hold a password


def begin(
    config: TuneConfig, flags: Layer, at_once: int, backend: str, runs_dir: Path, name: str | None, display: Display
) -> int:
    """Start the study, or go on with the one of this name; the exit code of the process. `flags` change the base."""
    storage.imported()
    at_once = min(at_once, config.trials)
    base = base_of(config, flags)
    space = space_of(config, base)
    asked = asked_of(config, base, space)
    run = _existing(runs_dir, name, asked)
    if run is not None:
        known = files.read_json(run.path / OPTUNA)
        files.write_json(run.path / OPTUNA, known | {"storage": config.storage})  # its password may be another by now
        (run.path / OPTUNA).chmod(PRIVATE)
        return go_on(run, at_once, backend, display)

    optuna_name = f"{name or setup.stem(base)}-{uuid.uuid4().hex[:8]}"
    if config.storage:
        with storage.connected(config.storage):
            pass  # a database that does not answer is told of before anything is written
    study.backend(backend)
    prepared = setup.prepare(study.threads_for(base, at_once), progress=display.counting("decoding"))
    # What holds for all trials is resolved; the rest (a layout, a size) depends on what each trial tries.
    data, train = prepared.config.data, prepared.config.train
    config_file = base.with_values(
        data={"source": data.source, "groups": data.groups}, train={"device": train.device, "threads": train.threads}
    )
    known = {"study": optuna_name, "storage": config.storage}
    known |= {"data": data.model_dump(mode="json"), "hash": prepared.dataset.hash}
    run = study.create(runs_dir, name, f"{setup.stem(prepared.config)}-tuning", asked, config_file, {OPTUNA: known})
    (run.path / OPTUNA).chmod(PRIVATE)
    _opening(read_search(run), prepared, at_once, display)
    return go_on(run, at_once, backend, display)


def go_on(run: RunDir, at_once: int, backend: str, display: Display) -> int:
    """Run the trials that are not done yet, and write what all of them found."""
    search = read_search(run)
    if open_dataset(search.data).hash != search.data_hash:
        raise UserError(f"the data '{search.base.data.source}' has changed since '{run.path}' was begun: start anew")
    with search.opened() as known:
        _await_savers(search, known)
        before = _finished(search, known)
        if before:
            display.line(f"{len(before)} of {search.asked.trials} trials were done before")
        ran = _follow(search, before, at_once, backend, display)
        if ran.stopped:
            display.line(f"\nstopped, all saved; go on with: {command('resume', run.path)}")
            return EXIT_CODES[ran.stopped]
        found = summarise(search, known)
        show(search, found, display)
        left = search.asked.trials - len(_finished(search, known))
    if left:
        reason = ran.failed or "another process has them in hand"
        display.line(f"not done: {left} of {search.asked.trials} trials: {reason}")
        display.line(f"next: {command('resume', run.path)}")
    return 0 if found.ranked and not left else 1


@dataclass
class _Ran:
    failed: str = ""
    stopped: signal.Signals | None = None


def _follow(search: Search, before: list[dict[str, Any]], at_once: int, backend: str, display: Display) -> _Ran:
    """Run the trials that are missing, in sight of a person; stops early where it is not a trial that fails."""
    ran, call = _Ran(), uuid.uuid4().hex
    threads = search.base.train.threads
    assert threads is not None, "the study's config.yaml names the threads"
    directory = str(search.run.path.resolve())
    jobs = [TrialJob(f"trial {n}", directory, threads, call) for n in range(len(before), search.asked.trials)]
    if not jobs:
        return ran
    done = list(before)
    runner = study.backend(backend)
    with Interrupts() as interrupts, progress_bar(display, len(jobs), "trials") as advance:
        for answer in runner(jobs, at_once, search.run.path / "workers.log", interrupts):
            if answer.progress:
                advance(answer.index, answer.progress["epoch"] / answer.progress["epochs"])
            elif answer.record is None:
                ran.failed = answer.failed or "a job ended without an answer"
                break
            else:
                advance(answer.index, 1.0)
                if answer.record["number"] is not None:
                    done.append(answer.record)
                    line = _line(search, answer.record, done)
                    display.line(line)
                    search.run.log(line)
        ran.stopped = interrupts.received
    return ran


def _line(search: Search, record: dict[str, Any], done: list[dict[str, Any]]) -> str:
    tried = settings(record["values"])
    if record["state"] == "failed":
        return f"trial {record['number']:<3} failed  {tried}: {record['message']}"
    best = ranking([one for one in done if one["state"] == "complete"], search.asked.minimize)
    so_far = f"   best {best[0]['value']:.4f} (trial {best[0]['number']})" if best else ""
    ended = f"  {record['message'].partition(':')[0]}" if record["state"] == "pruned" else ""
    spent = duration(record["seconds"])
    return f"trial {record['number']:<3} {search.asked.metric} {record['value']:.4f}  {tried}  {spent}{ended}{so_far}"


def _existing(runs_dir: Path, name: str | None, asked: dict[str, Any]) -> RunDir | None:
    """The study of this name where it was begun before; more trials may be asked of it than at first."""
    if name is None or not RunDir(runs_dir / name).study.exists():
        return study.existing(runs_dir, name, asked)
    before = study.read_asked(RunDir(runs_dir / name)).get("trials", asked["trials"])
    more = asked["trials"] > before
    run = study.existing(runs_dir, name, asked | {"trials": before} if more else asked)
    if more and run is not None:
        files.write_text(run.study, to_yaml(asked))
    return run


def _finished(search: Search, known: Any) -> list[dict[str, Any]]:
    return [record_of(trial, search.space) for trial in known.get_trials(deepcopy=False) if trial.state.is_finished()]


def _await_savers(search: Search, known: Any) -> None:
    """Workers of a call that was killed a moment ago may still be saving their trials: give them time."""
    until = time.monotonic() + LOCK_WAIT
    for trial in known.get_trials(deepcopy=False):
        if trial.state.name == "RUNNING" and search.trials.exists():
            try:
                with FileLock(search.lock(trial.number), timeout=max(0.0, until - time.monotonic())):
                    pass
            except Timeout:  # another command works on the same study
                return


def _opening(search: Search, prepared: setup.Prepared, at_once: int, display: Display) -> None:
    asked, dataset, train = search.asked, prepared.dataset, prepared.config.train
    display.line(f"study   {search.run.path}" + (f": {asked.question}" if asked.question else ""))
    display.line(
        f"data    {search.base.data.source}: {len(dataset.train):,} train, {len(dataset.val):,} val, "
        f"{dataset.test_size:,} test (sealed)"
    )
    display.line(f"space   {', '.join(search.space)}; pruner {asked.pruner}, seed {asked.seed}")
    display.line(
        f"trials  {asked.trials} of up to {train.epochs} epochs, {at_once} at once; threads of a trial: {train.threads}"
    )
    if asked.storage:
        display.line(f"storage {asked.storage}, study '{search.name}'")
    assert prepared.seconds_per_epoch is not None
    seconds = prepared.seconds_per_epoch * train.epochs * asked.trials / at_once
    display.line(f"needs   about {duration(seconds)} of training, if the base is like most trials")
