"""Cross-validations of several configs on the same folds, compared with the first by the test by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convsmith import records
from convsmith.config import differences, read_run_config, word
from convsmith.errors import UserError
from convsmith.rundir import RunDir, kind_of
from convsmith.studies import study, text
from convsmith.studies.by_image import Predicted, less, predicted
from convsmith.studies.crossval import fold_jobs
from convsmith.studies.statistics import Comparison
from convsmith.studies.variance import compare_by_image

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class CrossvalComparison:
    """Each further cross-validation against the first: `results` has a `Comparison` for each metric, by study.

    The level of their intervals, and their p-values, are corrected for the number of studies compared (Bonferroni), but
    not for that of metrics. `settings` are the keys in which the configs differ, each with its value in every study.
    """

    means: Mapping[str, Mapping[str, float]]
    settings: list[tuple[str, list[str]]]
    results: Mapping[str, Mapping[str, Comparison]]

    def table(self) -> list[dict[str, str]]:
        """One row for each study and metric, with its mean, that of the first study, and their difference."""
        return [
            {
                "study": name,
                "metric": records.METRICS[metric].label,
                "mean": records.shown(metric, self.means[name][metric]),
                "of the first": records.shown(metric, self.means[next(iter(self.means))][metric]),
                "difference": shown.difference(found.mean_difference),
                "95% interval": shown.interval(
                    None if found.low is None or found.high is None else (found.low, found.high)
                ),
                "p": "" if found.p is None else f"{found.p:.4f}",
                "verdict": verdict(metric, found),
            }
            for name, of in self.results.items()
            for metric, found in of.items()
            for shown in [text.unit(metric)]
        ]

    def __repr__(self) -> str:
        return f"CrossvalComparison({', '.join(self.means)})"


def verdict(metric: str, found: Comparison) -> str:
    """``better``, ``worse`` or ``no difference shown``, by the corrected p-value."""
    if found.p is None or found.p >= ALPHA:
        return "no difference shown"
    return "better" if (found.mean_difference > 0) == records.METRICS[metric].higher_is_better else "worse"


def are_crossvals(directories: Sequence[Path]) -> bool:
    """Whether the directories are cross-validations; a UserError where only some of them are."""
    found = [kind_of(RunDir(path)) == "crossval" for path in directories]
    if any(found) and not all(found):
        run = directories[found.index(False)]
        raise UserError(f"'{run}' is no cross-validation, others are: compare cross-validations, or single runs")
    return bool(found) and all(found)


def compare_crossvals(directories: Sequence[Path], out: Path | None = None) -> CrossvalComparison:
    """Compare cross-validations with the first, over the folds that both have done.

    UserError for fewer than two, for one that is given twice, where their folds hold out different images, and for
    `out`, since there is no page of them.
    """
    if out is not None:
        raise UserError(f"--out '{out}': cross-validations are compared in the terminal alone, without a page")
    if len(directories) < 2:
        raise UserError(f"compare needs at least two cross-validations, not '{directories[0]}' alone")
    if len({path.resolve() for path in directories}) < len(directories):
        raise UserError("a cross-validation is given twice: compare different ones")
    alike = len({path.resolve().name for path in directories}) < len(directories)
    runs = {str(path) if alike else path.resolve().name: RunDir(path) for path in directories}
    known = {name: records.read(run.path / study.FOLDS, records.Folds) for name, run in runs.items()}
    (reference, folds), *others = known.items()
    for name, other in others:
        if any(other[key] != folds[key] for key in ("hash", "pool", "divisions")):
            raise UserError(
                f"cross-validations '{reference}' and '{name}' have different folds, so that their images cannot be "
                "paired: give both the same data, data.split_seed, data.val_fraction, --folds and --repeats"
            )
    configs = {name: read_run_config(run.config) for name, run in runs.items()}
    found: dict[str, dict[int, Predicted]] = {}
    for name, run in runs.items():
        jobs = [job for job in fold_jobs(run, configs[name]) if job.done]
        found[name] = {job.index: one for job, one in zip(jobs, predicted(jobs, folds), strict=True)}
    metrics = [
        metric
        for metric in records.METRICS
        if all(metric in one.record for of in found.values() for one in of.values())
    ]
    level = 1 - ALPHA / len(others)
    return CrossvalComparison(
        means={
            name: {metric: float(np.mean([one.record[metric] for one in of.values()])) for metric in metrics}
            for name, of in found.items()
        },
        settings=[
            (key, [word(value) for value in values])
            for key, values in differences([config.model_dump(mode="json") for config in configs.values()])
            if not key.startswith("track.")
        ],
        results={name: _results(found[reference], found[name], metrics, level, len(others)) for name, _ in others},
    )


def _results(
    first: Mapping[int, Predicted], second: Mapping[int, Predicted], metrics: Sequence[str], level: float, count: int
) -> dict[str, Comparison]:
    both = sorted(first.keys() & second.keys())
    result: dict[str, Comparison] = {}
    for metric in metrics:
        trainings = [less(second[index].training(metric), first[index].training(metric)) for index in both]
        result[metric] = _corrected(compare_by_image(trainings, level=level), count)
    return result


def _corrected(found: Comparison, count: int) -> Comparison:
    return found if found.p is None else replace(found, p=min(1.0, count * found.p))
