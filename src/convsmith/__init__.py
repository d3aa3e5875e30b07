"""Develop, finetune and understand convolutional image classifiers, with numbers you can trust.

>>> import convsmith
>>> run = convsmith.train(data="digits", model="simple-cnn", epochs=5)
>>> run.evaluate("test")["accuracy"]
>>> convsmith.load("runs/digits-simple-cnn-1").predict(["seven.png"])

Every verb of the command line is a function here or a method of `Run`, with the same options. Long-running functions
have `show`: true shows the progress in the terminal or notebook, false shows nothing, and a function of your own gets
each event of `convsmith.events`. All raise the errors of `convsmith.errors`: `UserError` for invalid input, `RunFailed`
where the work itself fails, and `Stopped` where a signal ended it after everything was saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

# A package sets its name in the one above when it is first imported: now, since that name is a function below.
from convsmith import report as _report_package  # noqa: F401

if TYPE_CHECKING:
    import torch

    from convsmith.data.audit import Audit
    from convsmith.modelsummary import ModelSummary
    from convsmith.report.compare import Comparison
    from convsmith.run import Run
    from convsmith.show import Show
    from convsmith.spec import Arrays, Data, Model
    from convsmith.studies.ablation import AblationResult
    from convsmith.studies.auto import AutoResult
    from convsmith.studies.crossval import CrossvalResult
    from convsmith.studies.crossvals_compared import CrossvalComparison
    from convsmith.studies.lr_find import LrFindResult
    from convsmith.studies.planning import AblationPlan
    from convsmith.studies.tuning import TuningResult
    from convsmith.training.own import OptimizerFactory

__all__ = [
    "Run",
    "ablate",
    "auto",
    "check_data",
    "compare",
    "crossval",
    "doctor",
    "load",
    "lr_find",
    "models",
    "presets",
    "report",
    "resume",
    "runs",
    "summary",
    "train",
    "tune",
]


def train(
    data: Data = None,
    model: Model = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    resume: bool = False,
    optimizer: OptimizerFactory | None = None,
    show: Show = True,
    **settings: Any,
) -> Run:
    """Train a classifier into a new run directory and return it.

    Without a `preset` and a `config` the data choose the recipe, which `show` is told in a sentence (docs/guide.md).
    Without a `name`, a training that the same settings began and that was interrupted is continued. With `resume`, the
    run of this `name` is continued if it exists.

    `data`: a name, a path, or ``(images, labels)`` with images uint8 [N, H, W] or [N, H, W, C] and labels integers or
    strings [N]; by default that of `config` or `preset`, or else digits. `model`: a name, or a module of your own that
    maps float [B, C, H, W] to logits [B, K]. Either may also be a dict of its section's settings, such as
    ``data={"source": "photos", "image_size": 64}``. `optimizer`: a function that takes parameter groups and returns a
    torch optimiser. `settings`: the short names (epochs, batch_size, lr, seed, device) and whole sections, such as
    ``augment={"hflip": True}``.
    """
    from convsmith import run as runs
    from convsmith.recipes import decide
    from convsmith.show import listening
    from convsmith.spec import spec_of

    spec = spec_of(data, model, preset, config, optimizer, settings)
    with listening(show) as listener:
        chosen = decide(spec.settings, spec.parts, listener)
        return runs.train(chosen, spec.parts, name, Path(runs_dir), listener, resume_named=resume)


def resume(
    run: str | Path,
    model: torch.nn.Module | None = None,
    optimizer: OptimizerFactory | None = None,
    data: Arrays | None = None,
    *,
    jobs: int = 1,
    backend: str = "local",
    show: Show = True,
) -> Run | CrossvalResult | AblationResult | TuningResult | AutoResult:
    """Resume a stopped run, to the same weights bit for bit, or a study, and return its result.

    Pass in again the module, the optimiser and the arrays that were your own. `jobs` and `backend` apply to studies.
    """
    from convsmith import run as runs
    from convsmith.rundir import open_run
    from convsmith.show import listening
    from convsmith.spec import parts_of
    from convsmith.studies import resuming

    directory, parts = open_run(run), parts_of(data, model, optimizer)
    with listening(show, study=directory.study.exists()) as listener:
        if directory.study.exists():
            return resuming.resume(directory.path, parts, jobs=jobs, backend=backend, listener=listener)
        return runs.resume(directory, parts, listener)


def load(
    run: str | Path, model: torch.nn.Module | None = None, data: Arrays | None = None, *, device: str = "auto"
) -> Run:
    """A trained run. Pass in the module or the arrays if they are your own."""
    from convsmith import run as runs
    from convsmith.spec import parts_of

    return runs.Run(Path(run), parts_of(data, model), device)


def auto(
    data: Data = None,
    *,
    minutes: float = 5.0,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    show: Show = True,
    **settings: Any,
) -> AutoResult:
    """The best classifier for `data` that `minutes` on this machine can make, and the evidence for it.

    Candidates (solved heads on the features of each pretrained backbone at hand, finetuning, small nets from scratch)
    race under the budget, judged by inner validation alone; the estimate comes from images that chose nothing. The
    result's directory is that of a run like any other: ``convsmith.load(result)``. A race that was stopped goes on
    with the same arguments. `settings`: seed, device, and the sections data, track and train.
    """
    from convsmith.config import validate
    from convsmith.show import listening
    from convsmith.spec import spec_of
    from convsmith.studies import auto as module

    spec = spec_of(data, None, None, None, None, settings)
    with listening(show, study=True) as listener:
        config = validate(spec.layer)
        return module.auto(config, spec.parts, minutes=minutes, name=name, runs_dir=Path(runs_dir), listener=listener)


def crossval(
    data: Data = None,
    model: Model = None,
    *,
    folds: int = 5,
    repeats: int = 1,
    jobs: int = 1,
    backend: str = "local",
    preset: str | None = None,
    config: str | Path | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    optimizer: OptimizerFactory | None = None,
    show: Show = True,
    **settings: Any,
) -> CrossvalResult:
    """N-fold cross-validation of what `train` would train with these arguments; continues the study with this name.

    `jobs` folds are trained at a time, by the `backend` "local" or "ray"; with objects of your own, one at a time in
    this process.
    """
    from convsmith.recipes import decide
    from convsmith.show import listening
    from convsmith.spec import spec_of
    from convsmith.studies import crossval as module

    spec = spec_of(data, model, preset, config, optimizer, settings)
    with listening(show, study=True) as listener:
        return module.crossval(
            decide(spec.settings, spec.parts, listener),
            spec.parts,
            folds=folds,
            repeats=repeats,
            jobs=jobs,
            backend=backend,
            name=name,
            runs_dir=Path(runs_dir),
            listener=listener,
        )


@overload
def ablate(
    study: str | Path | Mapping[str, Any],
    data: Data = None,
    model: Model = None,
    *,
    detect: None = None,
    **options: Any,
) -> AblationResult: ...
@overload
def ablate(
    study: str | Path | Mapping[str, Any], data: Data = None, model: Model = None, *, detect: float, **options: Any
) -> AblationPlan: ...
def ablate(
    study: str | Path | Mapping[str, Any],
    data: Data = None,
    model: Model = None,
    *,
    folds: int | None = None,
    repeats: int | None = None,
    seeds: int | None = None,
    jobs: int = 1,
    backend: str = "local",
    budget: float | None = None,
    detect: float | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    optimizer: OptimizerFactory | None = None,
    show: Show = True,
    **settings: Any,
) -> AblationResult | AblationPlan:
    """Compare the arms of a `study` (a file, a name, or a dict of its keys) with its base on the same folds.

    `data`, `model` and `settings` change the base, and so every arm; `folds`, `repeats` and `seeds` replace the
    study's. With a `budget` in minutes, the study is looked at on its way: arms whose verdict is clear stop, and the
    error rates hold over all looks. With `detect`, a difference in the unit in which the metric is shown (0.5 points of
    accuracy), nothing is trained: the result says how large the study has to be to find it, and what that costs.
    """
    from convsmith.show import listening
    from convsmith.spec import spec_of
    from convsmith.studies import ablation, planning
    from convsmith.studies.config import read_study

    spec = spec_of(data, model, None, None, optimizer, settings)
    options: dict[str, Any] = {"folds": folds, "repeats": repeats, "seeds": seeds, "jobs": jobs, "backend": backend}
    options |= {"budget": budget, "runs_dir": Path(runs_dir)}
    with listening(show, study=True) as listener:
        asked = read_study(study), spec.layer, spec.parts
        if detect is not None:
            return planning.plan(*asked, detect=detect, **options, listener=listener)
        return ablation.ablate(*asked, **options, name=name, listener=listener)


def tune(
    study: str | Path | Mapping[str, Any],
    data: Data = None,
    model: Model = None,
    *,
    trials: int | None = None,
    jobs: int = 1,
    backend: str = "local",
    name: str | None = None,
    runs_dir: str | Path = "runs",
    optimizer: OptimizerFactory | None = None,
    show: Show = True,
    **settings: Any,
) -> TuningResult:
    """Search the space of a `study` (a file, a name, or a dict of its keys) with Optuna.

    `data`, `model` and `settings` change the base, and so every trial.
    """
    from convsmith.show import listening
    from convsmith.spec import spec_of
    from convsmith.studies import tuning
    from convsmith.studies.tune_config import read_tuning

    spec = spec_of(data, model, None, None, optimizer, settings)
    with listening(show, study=True) as listener:
        return tuning.tune(
            read_tuning(study),
            spec.layer,
            spec.parts,
            trials=trials,
            jobs=jobs,
            backend=backend,
            name=name,
            runs_dir=Path(runs_dir),
            listener=listener,
        )


def lr_find(
    data: Data = None,
    model: Model = None,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    preset: str | None = None,
    config: str | Path | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    optimizer: OptimizerFactory | None = None,
    show: Show = True,
    **settings: Any,
) -> LrFindResult:
    """The learning-rate range test from `low` to `high` in `steps` batches, with a suggested rate."""
    from convsmith.recipes import decide
    from convsmith.show import listening
    from convsmith.spec import spec_of
    from convsmith.studies import lr_find as module

    spec = spec_of(data, model, preset, config, optimizer, settings)
    with listening(show, study=True) as listener:
        return module.lr_find(
            decide(spec.settings, spec.parts, listener),
            spec.parts,
            low=low,
            high=high,
            steps=steps,
            name=name,
            runs_dir=Path(runs_dir),
            listener=listener,
        )


def check_data(
    source: str | Path | Sequence[str | Path] | Arrays | Mapping[str, Any],
    range: str | tuple[float, float] = "full",
    out: str | Path | None = None,
    *,
    show: Show = True,
) -> Audit:
    """Check every image of a data set for broken files, duplicates, counts and sizes; nothing is changed.

    `source` may be a dict of settings, as `train`'s data may: ``{"source": folder, "labels": table}``. `range` is
    data.range, for samples of more than 8 bits. All results go to `out`, a .json file.
    """
    from convsmith.data.audit import check_data
    from convsmith.show import listening
    from convsmith.spec import spec_of

    settings = dict(source) if isinstance(source, Mapping) else {"source": source}
    spec = spec_of({"range": range, **settings}, None, None, None, None, {})
    with listening(show) as listener:
        return check_data(spec.config.data, spec.parts.source, None if out is None else Path(out), listener)


def compare(runs: Sequence[str | Path | Run], out: str | Path | None = None) -> Comparison | CrossvalComparison:
    """Compare finished runs on their validation splits, with the first as reference, and write a page to `out`.

    Without `out` the page goes beside the first run. Differences in accuracy come from paired predictions.
    Cross-validations on the same folds are compared by image, in every metric and without a page.
    """
    from convsmith.report.compare import compare
    from convsmith.studies.crossvals_compared import are_crossvals, compare_crossvals

    given = [runs] if isinstance(runs, str | PathLike) else runs  # one is too few, which is said there
    paths, page = [Path(run) for run in given], None if out is None else Path(out)
    return compare_crossvals(paths, page) if are_crossvals(paths) else compare(paths, page)


def report(run: str | Path | Run, data: Data = None, *, show: Show = True) -> Path:
    """Write report.html of a finished run, or of a study, and return its path.

    An ablation or a tuning that was interrupted gets a page of what is known so far. `data` is the run's own data at
    another place than in its training. A run with a module of your own: ``load(run, model).report()``.
    """
    from convsmith import run as runs
    from convsmith.report.run import report
    from convsmith.rundir import open_run
    from convsmith.show import listening

    directory = open_run(Path(run))
    with listening(show) as listener:
        source = None if data is None else runs.moved(directory, data)
        return report(directory.path, source, listener=listener)


def summary(
    data: Data = None,
    model: Model = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    **settings: Any,
) -> ModelSummary:
    """The network that `train` would train with these arguments, layer by layer.

    `config` may also be a run directory; pass in its module if it is your own.
    """
    from convsmith.modelsummary import of_config, of_run
    from convsmith.recipes import decide
    from convsmith.spec import spec_of

    directory = Path(config) if config is not None and Path(config).is_dir() else None
    spec = spec_of(data, model, preset, None if directory else config, None, settings)
    return of_run(directory, spec.parts) if directory else of_config(decide(spec.settings, spec.parts), spec.parts)


def runs(folder: str | Path = "runs") -> list[dict[str, Any]]:
    """The runs and studies directly below `folder`, the most recently changed first.

    Each has its `directory`, `kind` (run, crossval, ablate, tune, lr-find), `state` (running, finished, incomplete,
    stopped or damaged), `val_accuracy` (for a cross-validation, the mean over the held-out folds; for a race, its
    estimate), `test_accuracy` (None where there is none), its size in `bytes`, and the time when it was `changed`.
    """
    from convsmith.rundir import listing

    return listing(Path(folder))


def models(pattern: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """Networks of torchvision and timm with pretrained weights whose names contain `pattern` (or match ``timm/res*``).

    At most `limit` are described; without a pattern, those whose weights are on this machine and those that `train`
    prefers. Each has its name (`model`), `parameters` and `macs` with the library's head, the `image_size` of its
    weights, the file of its `weights` on this machine (else None), and `images_per_second` of a training step here,
    where one was measured (else None).
    """
    from convsmith.zoo import described, matching

    return described(matching(pattern)[: max(limit, 1)])


def presets(name: str | None = None) -> dict[str, str]:
    """The presets that come with the package, or only the one with this name: name -> YAML text."""
    from convsmith.config import presets as known

    return known(name)


def doctor() -> dict[str, str]:
    """A description of this machine: versions, devices, threads, the cache, the W&B account."""
    from convsmith.machine import description

    return description()


def __getattr__(name: str) -> Any:
    if name == "Run":  # imported on first use, since torch takes seconds to import
        from convsmith.run import Run

        return Run
    raise AttributeError(f"module 'convsmith' has no attribute '{name}'")
