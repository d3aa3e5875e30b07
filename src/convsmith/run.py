"""A run as a Python object, and the training and resuming of runs. Prints nothing; events go to a listener."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convsmith import records
from convsmith.config import RunConfig
from convsmith.data.sources import Source
from convsmith.errors import Stopped, Terminated, UserError, choose, command
from convsmith.events import Doing, Ended, Interrupted, Listener, Note, counter, nobody
from convsmith.prediction.evaluate import evaluate, evaluate_other, moved_source
from convsmith.prediction.inputs import with_ids
from convsmith.prediction.predicting import predict_all
from convsmith.prediction.predictor import Prediction, Predictor, as_prediction, load_predictor
from convsmith.rundir import RunDir, open_run, open_single, open_trained, refuse_taken
from convsmith.runtime import Interrupts
from convsmith.spec import Data, reading_of
from convsmith.terminal import warn
from convsmith.tracking import csv
from convsmith.training import checkpoint, interrupted, restore, setup
from convsmith.training.experiment import Experiment, opening
from convsmith.training.loop import epochs
from convsmith.training.own import NO_PARTS, Parts
from convsmith.training.ranks import Ranks, joined
from convsmith.training.state import kept_epoch
from convsmith.training.together import follow, lead, nothing_to_do, refuse_different, refuse_small, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convsmith.explain.explanation import Explanation
    from convsmith.export import Export

COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_f1")  # shown in a notebook

PREPARING = Doing("preparing the training")


class Run:
    """A run directory: its numbers, its model, and the functions that use them.

    The folder of a model alone, such as a copy of ``model/``, is a run that can predict, explain, export and serve.
    `parts` holds the user's own module or data, if any; `device` is auto, cpu, cuda or mps.
    """

    def __init__(self, directory: Path | RunDir, parts: Parts = NO_PARTS, device: str = "auto") -> None:
        self.files: RunDir = directory if isinstance(directory, RunDir) else open_trained(directory)
        self.device = device
        self._module = parts.module
        self._source = parts.source

    @property
    def directory(self) -> Path:
        return self.files.path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row per epoch, as in metrics.csv."""
        return [dict(row) for row in csv.read(open_run(self.directory).metrics)]

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json of a finished run."""
        return records.read(open_run(self.directory, "summary.json").summary, records.Summary)

    @cached_property
    def predictor(self) -> Predictor:
        """The best model with its preprocessing."""
        return load_predictor(self.directory, self.device, module=self._module)

    def predict(
        self,
        paths: Any,
        out: str | Path | None = None,
        top_k: int | None = None,
        csv_safe: bool = False,
        threshold: float | None = None,
        features: str | Path | None = None,
    ) -> list[Prediction]:
        """Predict one image, a list or a batch: paths, folders, encoded bytes, files open for reading, PIL images,
        arrays uint8 [H, W(, C)] or tensors [C, H, W].

        Each prediction has `label`, `confidence` and `probabilities` by class, the most probable first; `top_k` keeps
        that many of them. One of an image that cannot be read has an `error` instead. With a `threshold` the label is
        "unsure" where the calibrated confidence is lower. With `out`, a .csv or .json file, all rows are written there
        as they come; with `csv_safe`, cells of names that a spreadsheet would compute as formulas begin with an
        apostrophe. `features`: a .npz or .parquet file for what the head of the network gets of each image.
        """
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k must be at least 1, but got {top_k}")

        def warn_of(event: object) -> None:
            if isinstance(event, Note):
                warn(event.text)

        ids, images = with_ids(paths, self.predictor.card.preprocessing.channels)
        found = predict_all(
            self.predictor,
            ids,
            images,
            None if out is None else Path(out),
            csv_safe,
            threshold,
            None if features is None else Path(features),
            warn_of,
        )
        return [as_prediction(row, top_k) for rows in found for row in rows]

    def evaluate(self, split: str | None = None, data: Data = None, show: bool | Listener = True) -> dict[str, Any]:
        """Evaluate on a split (default: val), and return the record of evaluation-<split>.json.

        `test` opens the sealed test split, which is recorded in the run. `data` are other labelled images with the
        model's classes, or some of them: in any form that `train` takes, or the run's own where they have moved. Then
        `split` is one of their own splits (default: all images), and the files are named after the data.
        """
        given = f"{split!r}" if data is None else f"{split!r}, data=..."
        typed = f"convsmith.load({str(self.directory)!r}).evaluate({given})"
        if data is None:
            return evaluate(self.files, split or "val", typed, self.device, source=self._source, module=self._module)
        from convsmith.show import listening

        config, source = reading_of(data)
        with listening(show) as listener:
            return evaluate_other(self.files, config, split, typed, self.device, source, self._module, listener)

    def _moved(self, data: Data) -> Source | None:
        """The run's own images: at the place that `data` names, or else those that were passed to `load`."""
        return self._source if data is None else moved(self.files, data)

    def report(self, show: bool | Listener = True, data: Data = None) -> Path:
        """Write report.html and return its path. A page with images is never replaced by one without images.

        `data`, here and below, is the run's own data at another place than in its training.
        """
        from convsmith.report.run import report
        from convsmith.show import listening

        with listening(show) as listener:
            return report(self.directory, self._moved(data), self._module, listener)

    def explain(
        self,
        paths: Any = (),
        target: str | None = None,
        stage: str | None = None,
        figure: str | None = None,
        show: bool | Listener = True,
        data: Data = None,
    ) -> Explanation:
        """Show what the model looks at in images, or one `figure` of how it works; see `explain.explanation.explain`.

        `paths` are files, patterns or images; by default, the most informative validation images. `target` is the class
        to explain (default: the predicted one), `stage` is the one for Grad-CAM (default: the last with feature maps).
        """
        from convsmith.explain.explanation import explain
        from convsmith.show import listening

        with listening(show) as listener:
            return explain(
                self.directory, paths, target, stage, figure, self.device, self._module, self._moved(data), listener
            )

    def export(
        self,
        format: Literal["onnx", "torch"],
        out: str | Path | None = None,
        preprocessing: Literal["graph", "metadata"] = "graph",
        images: str | Path | Sequence[str | Path] = (),
        data: Data = None,
    ) -> Export:
        """Write the model as an ONNX or torch.export file, which is kept only if its results agree with PyTorch's.

        With `preprocessing` graph, the file contains the preprocessing and takes uint8 pixels; with metadata, the
        preprocessing is described in its metadata. The comparison takes `images` (files, folders or patterns), by
        default validation images; a model without its run is compared on random pixels.
        """
        from convsmith.export import export

        paths = [images] if isinstance(images, str | Path) else images
        target, source = None if out is None else Path(out), self._moved(data)
        return export(self.files, format, target, preprocessing, self._module, source, paths)

    def serve(self, host: str = "127.0.0.1", port: int = 8000, show: bool | Listener = True, data: Data = None) -> None:
        """Serve a web page and POST /predict until the process is interrupted."""
        from convsmith.serve.server import serve
        from convsmith.show import listening

        with listening(show) as listener:
            serve(self.files, host, port, self.device, self._module, self._moved(data), listener)

    def curves(self) -> Figure:
        """The learning curves as a matplotlib Figure; they mark the epoch that was kept."""
        from convsmith.figures.curves import learning_curves

        rows = self.metrics
        if not rows:
            raise UserError(f"run '{self.directory}' has not finished an epoch yet: there are no curves to draw")
        _show_figures_in_notebooks()
        return learning_curves(rows, self.best_epoch)

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights the run has kept, as recorded in summary.json or the newest checkpoint."""
        if self.files.summary.exists():
            return int(self.summary["best_epoch"])
        open_run(self.directory)
        return kept_epoch(checkpoint.read_newest(self.files.checkpoints)[1])

    def confusion(self, split: str = "val") -> Figure:
        """The confusion matrix of an evaluation as a matplotlib Figure; rows are true classes.

        `split` is val, test, or the name of an evaluation on other data.
        """
        from convsmith.figures.matrices import evaluation_figure

        path = self.files.evaluation(split)
        if not path.exists():
            if split not in ("val", "test"):
                raise choose("split", split, {"val", "test", *self.files.evaluations()})
            raise UserError(f"run '{self.directory}' has no {path.name} yet: evaluate('{split}') writes it")
        _show_figures_in_notebooks()
        return evaluation_figure(records.read(path, records.Evaluation))

    def __fspath__(self) -> str:
        """Its directory: where a run is asked for, the object serves as well as its path."""
        return str(self.directory)

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    def _repr_html_(self) -> str:
        """In a notebook: the last epochs and the learning curves."""
        from convsmith.studies.study import as_html

        table = as_html(self.directory, [{column: row[column] for column in COLUMNS} for row in self.metrics[-5:]])
        curves = self.files.figures / "curves.png"
        image = ""
        if curves.exists():
            from convsmith.figures.page import png_uri

            uri = png_uri(curves.read_bytes())
            image = f'<img alt="learning curves" style="max-width:640px" src="{uri}">'
        return table + image


def moved(run: RunDir, data: Data) -> Source:
    """The images of a run or a study at the place that `data` names, or as the arrays that it is."""
    config, source = reading_of(data)
    return source or moved_source(run, config)


def train(
    config: RunConfig,
    parts: Parts = NO_PARTS,
    name: str | None = None,
    runs_dir: Path = Path("runs"),
    listener: Listener = nobody,
    resume_named: bool = False,
) -> Run:
    """Train into a new run directory and write its report. Raises UserError, RunFailed, and Stopped on a signal.

    Without a name, a training that was started with the same config and interrupted is continued. With `resume_named`
    the run `name` is continued if it exists; where it was started with other settings, that is a UserError.
    """
    if resume_named and name is None:
        raise UserError("--resume goes with --name; without a name, an interrupted run is found by itself")
    with joined() as ranks:
        refuse_different(ranks, config, parts)
        if not ranks.first:
            return _followed(ranks, parts)
        return _train(ranks, config, parts, name, runs_dir, listener, resume_named)


def _train(
    ranks: Ranks,
    config: RunConfig,
    parts: Parts,
    name: str | None,
    runs_dir: Path,
    listener: Listener,
    resume_named: bool,
) -> Run:
    """`train` on the first rank, which is the only one of a process alone."""
    restarted = ranks.place.restarts > 0 and name is not None  # by torchrun, which repeats the command as it was
    if (resume_named or restarted) and (runs_dir / str(name)).exists():
        found = open_single(runs_dir / str(name))
        if not interrupted.refuse_other(found, interrupted.at_its_place(config)):
            listener(Note(f"'{found.path}' has no record of the settings it was begun with: they were not compared"))
        if found.summary.exists():
            listener(Note(f"'{found.path}' is finished: there is nothing to resume"))
        return _resume(ranks, found, parts, listener)
    refuse_taken(runs_dir, name)
    # What is the user's own cannot be compared.
    described = interrupted.at_its_place(config) if parts == NO_PARTS else None
    if name is None and described is not None and (left := interrupted.find(runs_dir, described)) is not None:
        with ExitStack() as held:
            try:
                held.enter_context(left.lock())
                listener(PREPARING)
                experiment = restore.resume(left, parts)
            except UserError as error:
                listener(Note(f"'{left.path}' was interrupted and cannot be continued, so a new run begins: {error}"))
            else:
                listener(interrupted.going_on(left, "run"))
                return _led(ranks, experiment, parts, listener)
    prepared = setup.prepare(config, parts, counter(listener, "decoding", within=PREPARING))
    refuse_small(ranks, prepared.config, prepared.dataset, prepared.model, prepared.finetuning)
    lead(ranks, prepared.config, prepared.dataset)
    experiment = setup.start(prepared, runs_dir, name, parts, asked=described)
    with experiment.run.lock():
        return _finish(share(ranks, experiment), parts, listener)


def resume(run: RunDir, parts: Parts = NO_PARTS, listener: Listener = nobody) -> Run:
    """Continue a stopped run to its end; a finished run is not changed. Raises the same errors as `train`."""
    with joined() as ranks:
        refuse_different(ranks, None, parts)
        return _resume(ranks, run, parts, listener) if ranks.first else _followed(ranks, parts)


def _resume(ranks: Ranks, run: RunDir, parts: Parts, listener: Listener) -> Run:
    """`resume` on the first rank."""
    if not run.summary.exists():
        run.refuse_links()
        open_run(run.path, run.checkpoints.name)
        with run.lock():  # before anything is read: a process that still trains writes rows and checkpoints
            if not run.summary.exists():
                listener(PREPARING)
                return _led(ranks, restore.resume(run, parts), parts, listener)
    nothing_to_do(ranks, run)
    return Run(run, parts)


def _led(ranks: Ranks, experiment: Experiment, parts: Parts, listener: Listener) -> Run:
    """Train a run that the first rank has resumed to its end."""
    refuse_small(ranks, experiment.config, experiment.dataset, experiment.state.model, experiment.state.finetuning)
    lead(ranks, experiment.config, experiment.dataset)
    return _finish(share(ranks, experiment), parts, listener)


def _followed(ranks: Ranks, parts: Parts) -> Run:
    """Take part in what the first rank trains, silently."""
    found = follow(ranks, parts)
    return Run(found, parts) if isinstance(found, RunDir) else _finish(found, parts, nobody)


def _finish(experiment: Experiment, parts: Parts, listener: Listener) -> Run:
    """Train a run that this process has locked to its end."""
    from convsmith.report.run import after_training

    run, ranks = experiment.run, experiment.ranks
    with Interrupts() as interrupts:
        listener(opening(experiment))
        for event in epochs(experiment, interrupts):
            listener(event)
            if isinstance(event, Interrupted):
                how = command("resume", run.path)
                raise Stopped(
                    event.signal,
                    f"stopped and saved at step {experiment.state.step}; continue with {how}",
                )
    try:
        if ranks.first:
            after_training(run, listener, parts.source, parts.module)
    except (KeyboardInterrupt, Terminated) as stop:
        what = f"the training has ended, and '{run.path}' lacks only its report; write it with"
        number = stop.signal if isinstance(stop, Terminated) else signal.SIGINT
        raise Stopped(number, f"{what} {command('report', run.path)}") from None
    ranks.told(lambda: True)  # the others return when all is written
    listener(Ended())
    return Run(run, parts)


def _show_figures_in_notebooks() -> None:
    """Make a notebook draw figures, as `%matplotlib inline` would, instead of printing their names."""
    if (ipython := sys.modules.get("IPython")) is not None and (shell := ipython.get_ipython()) is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})
