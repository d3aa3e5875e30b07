"""N-fold cross-validation: the same config trained on every fold, scored once on what the fold held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convsmith import files, records
from convsmith.config import RunConfig, read_run_config
from convsmith.data.dataset import HELD_OUT, Dataset
from convsmith.errors import UserError, damaged
from convsmith.events import CrossvalStarted, Listener, Note, counter, nobody
from convsmith.figures.matrices import confusion_figure
from convsmith.figures.style import save
from convsmith.prediction.evaluation import read_rows
from convsmith.rundir import RunDir
from convsmith.studies import backends, own, study
from convsmith.studies.by_image import predicted
from convsmith.studies.config import MOST_FOLDS
from convsmith.studies.fold_job import FoldJob
from convsmith.studies.folds import Fold, make_folds
from convsmith.studies.statistics import mean_interval
from convsmith.studies.variance import compare_by_image
from convsmith.training import setup
from convsmith.training.gather import image_epochs
from convsmith.training.own import NO_PARTS, Parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INNER_VAL = 0.1  # of a fold's training images, where the data's own val split leaves data.val_fraction open


@dataclass(frozen=True)
class CrossvalResult:
    """The results of all folds; `record` is the content of crossval.json."""

    directory: Path
    record: Mapping[str, Any]

    @property
    def per_fold(self) -> list[dict[str, Any]]:
        """One record per fold that is done: fold, repeat, n, seconds, and the metrics on the images held out."""
        return list(self.record["per_fold"])

    @property
    def mean(self) -> dict[str, float]:
        """Each metric's mean over the folds; empty where none is done."""
        return dict(self.record["mean"])

    @property
    def std(self) -> dict[str, float]:
        """Each metric's standard deviation over the folds; empty where fewer than two are done."""
        return dict(self.record["std"])

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """Each metric's 95% interval, for nets trained anew (docs/statistics.md); empty where `std` is."""
        return {metric: (low, high) for metric, (low, high) in self.record["ci95"].items()}

    @property
    def failed(self) -> dict[str, str]:
        """Why folds failed, by name."""
        return dict(self.record["missing"])

    @property
    def without_interval(self) -> dict[str, str]:
        """Why metrics are not in `std` and `ci95`, by metric, where two folds are done."""
        return dict(self.record["without_interval"])

    def table(self) -> list[dict[str, Any]]:
        """One row per fold: its name, each metric, the number of images held out, and the seconds of training."""
        repeated = self.record["repeats"] > 1
        return [
            {
                "fold": f"{fold['repeat']}.{fold['fold']}" if repeated else str(fold["fold"]),
                **{metric: fold[metric] for metric in self.mean},
                "images": fold["n"],
                "seconds": fold["seconds"],
            }
            for fold in self.per_fold
        ]

    def intervals(self) -> list[dict[str, Any]]:
        """One row per metric that is informative: mean, std, and the ends of the 95% interval.

        Empty if fewer than two folds are done.
        """
        shown = records.informative(len(self.record["confusion_matrix"]["labels"])) if self.std else {}
        return [
            {"metric": metric, "mean": self.mean[metric], "std": std, "low": low, "high": high}
            for metric, std in self.std.items()
            for low, high in [self.ci95[metric]]
            if metric in shown
        ]

    def confusion(self) -> Figure:
        """The confusion matrix of all folds together, in counts of images; at least one fold must be done."""
        matrix = self.record["confusion_matrix"]
        return confusion_figure(np.asarray(matrix["counts"]), matrix["labels"])

    def __repr__(self) -> str:
        accuracy = f"accuracy {self.mean['accuracy']:.4f}" if self.mean else "no fold is done"
        return f"CrossvalResult({str(self.directory)!r}, {accuracy}, {len(self.per_fold)} folds)"

    def _repr_html_(self) -> str:
        return study.as_html(self.directory, self.table()) + study.as_html("over the folds", self.intervals())


def crossval(
    config: RunConfig,
    parts: Parts = NO_PARTS,
    *,
    folds: int = 5,
    repeats: int = 1,
    jobs: int = 1,
    backend: str = "local",
    name: str | None = None,
    runs_dir: Path = Path("runs"),
    listener: Listener = nobody,
) -> CrossvalResult:
    """Start the cross-validation of a config, or continue the one with this name.

    The images are divided into `folds` parts, and this `repeats` times; `jobs` folds are trained at a time, on the
    `backend` "local" or "ray". With `parts` of the user's own they run in this process, one at a time. Raises UserError
    for invalid input, and Stopped where a signal ended the study after everything was saved. A fold that fails is
    listed in the result's `failed`.
    """
    study.within("folds", folds, 2, MOST_FOLDS)
    study.within("repeats", repeats, 1, MOST_FOLDS)
    study.refuse_too_many(folds, repeats, folds * repeats)
    study.refuse_jobs(jobs, backend)
    config = own.named(config, parts)
    spec = {"kind": "crossval", "folds": folds, "repeats": repeats, "config": config.model_dump(mode="json")}
    spec |= {"test": "images", **own.optimizer_of(parts)}
    run = study.existing(runs_dir, name, spec, listener)
    if run is None:
        backends.runner_for(backend, parts)
        max_workers = min(own.workers(jobs, backend, parts, nobody), folds * repeats)
        prepared = setup.prepare(
            study.threads_for(config, max_workers),
            own.fresh(parts),
            counter(listener, "decoding"),
        )
        divisions = divide(prepared.dataset, prepared.config, folds, repeats)
        default_name = f"{setup.default_name(prepared.config)}-crossval"
        written = {study.FOLDS: (records.Folds, study.folds_record(prepared.dataset, divisions))}
        run = study.create(runs_dir, name, default_name, spec, prepared.config, written)
        listener(_started(run, prepared, divisions, max_workers))
        for note in prepared.notes:
            listener(Note(note))
        own.note_weights(parts, listener)
    return resume(run, parts, jobs=jobs, backend=backend, listener=listener)


def divide(dataset: Dataset, config: RunConfig, folds: int, repeats: int) -> list[Fold]:
    """The folds of the data's train and val images together."""
    study.refuse_without_val(config)
    return make_folds(
        dataset.pool().labels,
        folds,
        repeats,
        config.data.val_fraction or INNER_VAL,
        config.data.split_seed,
        dataset.classes,
        dataset.pool_wholes(),
    )


def resume(
    run: RunDir, parts: Parts = NO_PARTS, *, jobs: int = 1, backend: str = "local", listener: Listener = nobody
) -> CrossvalResult:
    """Run the folds that are not done yet, and write the results of all."""
    spec = study.read_spec(run)
    with run.lock():
        config = read_run_config(run.config)
        own.refuse_other(config, spec, parts, run.path)
        study.note_test(run, spec, listener)
        folds = fold_jobs(run, config)
        max_workers = min(own.workers(jobs, backend, parts, listener), len(folds))
        runner = backends.runner_for(backend, parts)
        failed = backends.run_folds(run, folds, max_workers, runner, own.how_to_resume(run.path, parts), listener)
        return CrossvalResult(run.path, summarise(run, spec, [job for job in folds if job.done], failed))


def fold_jobs(run: RunDir, config: RunConfig) -> list[FoldJob]:
    """One job per fold, each with its own seed: the config's plus the fold's index."""
    folds_file = run.path / study.FOLDS
    record = records.read(folds_file, records.Folds)
    config = config.with_values(track={"group": run.name})
    return [
        FoldJob(
            name=f"fold {division['number']}" + (f" of repeat {division['repeat']}" if division["repeat"] > 1 else ""),
            directory=str((run.path / "folds" / str(index + 1)).resolve()),
            folds_file=str(folds_file.resolve()),
            index=index,
            config=config.with_values(train={"seed": config.train.seed + index}).model_dump(mode="json"),
            data_hash=record["hash"],
        )
        for index, division in enumerate(record["divisions"])
    ]


def summarise(
    run: RunDir, spec: Mapping[str, Any], done: Sequence[FoldJob], failed: Mapping[str, str]
) -> dict[str, Any]:
    """Write crossval.json, predictions-oof.csv and figures/confusion.png from the folds that are done."""
    folds = [RunDir(Path(job.directory)) for job in done]
    per_fold = [job.record() for job in done]
    # A fold of an earlier edition lacks the metrics that were added later.
    scores = {
        name: [record[name] for record in per_fold]
        for name in records.METRICS
        if per_fold and all(name in record for record in per_fold)
    }
    intervals, unknown = _intervals(run, spec, done, scores)
    evaluations = [records.read(fold.evaluation(HELD_OUT), records.Evaluation) for fold in folds]
    result: dict[str, Any] = {
        "folds": spec["folds"],
        "repeats": spec["repeats"],
        "missing": dict(failed),
        "per_fold": per_fold,
        "mean": {name: float(np.mean(values)) for name, values in scores.items()},
        "std": {name: std for name, (std, _, _) in intervals.items()},
        "ci95": {name: [low, high] for name, (_, low, high) in intervals.items()},
        "test": records.test_of(spec),
        "without_interval": unknown,
    }
    if evaluations:
        classes = evaluations[0]["classes"]
        counts = np.sum([record["confusion_matrix"]["counts"] for record in evaluations], axis=0)
        result["confusion_matrix"] = evaluations[0]["confusion_matrix"] | {"counts": counts.tolist()}
        run.figures.mkdir(exist_ok=True)
        save(confusion_figure(counts, classes), run.figures / "confusion.png")
        _write_out_of_fold(run, folds, per_fold)
    run.log(f"{len(per_fold)} folds done, {len(failed)} failed")
    return records.write(run.crossval, records.Crossval, result)


def _intervals(
    run: RunDir, spec: Mapping[str, Any], done: Sequence[FoldJob], scores: Mapping[str, Sequence[float]]
) -> tuple[dict[str, tuple[float, float, float]], dict[str, str]]:
    """Each metric's standard deviation between folds and the ends of its 95% interval, clipped to its range.

    Second, why a metric has none.
    """
    found: dict[str, tuple[float, float, float]] = {}
    unknown: dict[str, str] = {}
    if len(done) < 2:
        return found, unknown
    by_image = records.test_of(spec) == "images"
    predictions = predicted(done, records.read(run.path / study.FOLDS, records.Folds)) if by_image else []
    for name, values in scores.items():
        known = records.METRICS[name]
        try:
            if by_image:
                interval = compare_by_image([one.training(name) for one in predictions])
                std, low, high = interval.std, interval.low, interval.high
            else:
                _, std, low, high = mean_interval(values, 1 / spec["folds"])
        except UserError as error:
            unknown[name] = str(error)
        else:  # where nothing varies, the interval has no width
            mean = float(np.mean(values))
            found[name] = (
                std,
                known.within(mean if low is None else low),
                known.within(mean if high is None else high),
            )
    return found, unknown


def _write_out_of_fold(run: RunDir, folds: Sequence[RunDir], per_fold: Sequence[Mapping[str, Any]]) -> None:
    """Write each image with the prediction of the net that was not trained on it, by repeat, in the pool's order."""
    order = {name: at for at, name in enumerate(records.read(run.path / study.FOLDS, records.Folds)["pool"])}
    rows = []
    for fold, record in zip(folds, per_fold, strict=True):
        for row in read_rows(fold.predictions(HELD_OUT), ("id",)):
            if row["id"] not in order:
                raise damaged(fold.predictions(HELD_OUT), f"'{row['id']}' is not in {study.FOLDS}")
            rows.append(row | {"repeat": record["repeat"], "fold": record["fold"]})
    rows.sort(key=lambda row: (row["repeat"], order[str(row["id"])]))
    files.write_text(run.predictions("oof"), files.as_csv(rows))


def _started(run: RunDir, prepared: setup.Prepared, divisions: Sequence[Fold], max_workers: int) -> CrossvalStarted:
    config, dataset, first = prepared.config, prepared.dataset, divisions[0]
    assert prepared.seconds_per_epoch is not None
    assert config.train.threads is not None
    epoch = prepared.seconds_per_epoch * len(first.train) / len(dataset.train)
    return CrossvalStarted(
        directory=run.path,
        question=None,
        source=config.data.title,
        sealed=dataset.test_size,
        runs=len(divisions),
        max_workers=max_workers,
        seconds=epoch * max(image_epochs(config, prepared.finetuning), 1) * len(divisions) / max_workers,
        images=len(dataset.pool()),
        train=len(first.train),
        val=len(first.val),
        held_out=len(first.held_out),
        model=config.model.name,
        epochs=config.train.epochs,
        threads=config.train.threads,
    )
