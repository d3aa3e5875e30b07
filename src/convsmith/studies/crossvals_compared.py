"""Cross-validations of several configs on the same folds, compared with the first by the test by image."""

from __future__ import annotations

from collections.abc import Sequence
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
from convsmith.studies.statistics import LEVEL, Comparison, corrected_level
from convsmith.studies.variance import compare_by_image


@dataclass(frozen=True, eq=False)
class CrossvalComparison:
    """Each further cross-validation against the first: `results` has a `Comparison` for each metric, by study.

    The level of their intervals, and their p-values, are corrected for the number of studies compared (Bonferroni), but
    not for that of metrics. `means` are those of the study and of the first one, over the folds that both have done.
    `settings` are the keys in which the configs differ, each with its value in every study; `refused` says, by study
    and metric, why a metric was not compared.
    """

    means: dict[str, dict[str, tuple[float, float]]]
    settings: list[tuple[str, list[str]]]
    results: dict[str, dict[str, Comparison]]
    refused: dict[str, dict[str, str]]

    def table(self) -> list[dict[str, str]]:
        """One row for each study and metric, with its mean, that of the first study, and their difference."""
        return [
            {
                "study": name,
                "metric": records.METRICS[metric].label,
                "mean": records.shown(metric, mean),
                "of the first": records.shown(metric, of_first),
                "difference": shown.difference(found.mean_difference),
                "95% interval": shown.interval(
                    None if found.low is None or found.high is None else (found.low, found.high)
                ),
                "p": text.p_value(found.p),
                "verdict": verdict(metric, found),
            }
            for name, of in self.results.items()
            for metric, found in of.items()
            for shown, (mean, of_first) in [(text.unit(metric), self.means[name][metric])]
        ]

    def __repr__(self) -> str:
        return f"CrossvalComparison({', '.join(self.results)})"


def verdict(metric: str, found: Comparison) -> str:
    """``better``, ``worse`` or ``no difference shown``, by the corrected p-value."""
    if found.p is None or found.p >= 1 - LEVEL:
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
    if configs[reference].data.groups and "groups" not in folds:
        raise UserError(
            f"'{reference}' is of a version that did not record data.groups, which are what varies: cross-validate "
            "again"
        )
    found: dict[str, dict[int, Predicted]] = {}
    for name, run in runs.items():
        jobs = [job for job in fold_jobs(run, configs[name]) if job.done]
        found[name] = {job.index: one for job, one in zip(jobs, predicted(jobs, folds), strict=True)}
    result = CrossvalComparison(
        means={name: {} for name, _ in others},
        settings=[
            (key, [word(value) for value in values])
            for key, values in differences([config.model_dump(mode="json") for config in configs.values()])
            if not key.startswith("track.")
        ],
        results={name: {} for name, _ in others},
        refused={name: {} for name, _ in others},
    )
    for name, _ in others:
        both = sorted(found[reference].keys() & found[name].keys())
        if len(both) < 2:
            raise UserError(f"'{reference}' and '{name}' have fewer than two finished folds in common: resume them")
        classes = found[name][both[0]].outcomes.classes
        for metric in records.informative(classes):
            try:
                pairs = [(found[name][at].training(metric), found[reference][at].training(metric)) for at in both]
            except UserError as error:
                result.refused[name][metric] = str(error)
                continue
            ours, theirs = (float(np.mean([one.values.mean() for one in of])) for of in zip(*pairs, strict=True))
            result.means[name][metric] = ours, theirs
            compared = compare_by_image([less(one, other) for one, other in pairs], level=corrected_level(len(others)))
            result.results[name][metric] = _corrected(compared, len(others))
    return result


def _corrected(found: Comparison, count: int) -> Comparison:
    return found if found.p is None else replace(found, p=min(1.0, count * found.p))
