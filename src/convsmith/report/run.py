"""Writing report.html of a finished run or of a study. The content of its sections is made elsewhere."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from torch import nn

from convsmith.data.sources import Source
from convsmith.errors import UserError, command
from convsmith.events import Doing, Listener, Note, ReportWritten, nobody
from convsmith.figures.page import render
from convsmith.files import explain_os_errors, write_text
from convsmith.memory import explain_memory_errors
from convsmith.report import images, sections
from convsmith.report.images import Gallery
from convsmith.report.inputs import TEMPLATES, Inputs, read_inputs
from convsmith.report.race import race
from convsmith.rundir import RunDir, kind_of, open_run, out_of_fold

NAME = "report.html"


@explain_memory_errors("in the report")
def report(
    path: Path, source: Source | None = None, module: nn.Module | None = None, listener: Listener = nobody
) -> Path:
    """Write <run>/report.html and return its path; pass `source` and `module` if data or network are the user's own.

    A study gets a page of its kind: of ablations and tunings that were interrupted, of what is known so far. UserError
    where anything else is not finished, or a file is missing or damaged.
    A run whose data are gone gets a page without images and the listener a note; but where a page exists already, that
    is a UserError. The test split stays sealed.
    """
    run = open_run(path)
    run.refuse_links()
    target = run.path / NAME
    if run.study.exists():
        absent, text = _page_of_study(run, source)
        _note_missing_images(target, absent, listener)
    else:
        inputs = read_inputs(path, source, module)
        _note_missing_images(target, inputs.absent, listener)
        text = page(inputs)
    with explain_os_errors(f"'{target}'"):
        write_text(target, text)
    return target


def _page_of_study(run: RunDir, source: Source | None) -> tuple[str, str]:
    """Why the images of a study are not available ("" where they are), and its page."""
    kind = kind_of(run)
    if kind == "auto":
        raise UserError(f"the race '{run.path}' has not ended: {command('resume', run.path)} ends it, with a report")
    if kind == "tune":
        from convsmith.report.tuning import read_tuning, tuning_page

        return "", tuning_page(read_tuning(run))
    if kind == "ablate":
        from convsmith.report.ablation import ablation_page, read_ablation

        study = read_ablation(run, source)
        return study.opened[1], ablation_page(study)
    from convsmith.report.study import read_crossval, study_page

    crossval = read_crossval(run, source)
    return crossval.opened[1], study_page(crossval)


def _note_missing_images(target: Path, absent: str, listener: Listener) -> None:
    """Where the images are not available: a UserError if a page exists, which may show them, else a note."""
    if absent and target.exists():
        raise UserError(f"{absent} ('{target}' stays as it is: remove it to get a page without images)")
    if absent:
        listener(Note(f"the page has no images: {absent}"))


def page(inputs: Inputs) -> str:
    """report.html of the inputs."""
    predictions = inputs.predictions
    gallery = Gallery(inputs.dataset.val if inputs.dataset else None, predictions.ids)
    confusion = images.confusion(predictions, gallery)
    heats = images.heats_of(inputs.model, inputs.card, predictions, gallery)
    diagnosis, won = sections.diagnosis(inputs), race(inputs.run)
    values = {
        "run": inputs.run,
        "summary": inputs.summary,
        "config": inputs.config,
        "result": sections.result(inputs),
        "race": won,
        "out_of_fold": out_of_fold(inputs.run),
        "diagnosis": diagnosis,
        "curves": sections.curves(inputs),
        "confusion": confusion,
        "classes": sections.per_class(predictions),
        "mistakes": images.mistakes(predictions, gallery, heats),
        "suspected": images.suspected_labels(predictions, gallery),
        "calibration": sections.calibration(predictions),
        "layers": sections.layers(inputs),
        "data": sections.data(inputs),
        "samples": images.samples(inputs),
        "study": _study_of(inputs.run),
        "reproduction": sections.reproduction(inputs),
        "shown": {"images": {str(at): uri for at, uri in gallery.uris.items()}, "cells": confusion["shots"]},
    }
    findings = [finding["name"] for finding in diagnosis["findings"]]
    return render(TEMPLATES / "report.html", values | {"in_short": sections.summary(predictions, values, findings)})


def _study_of(run: RunDir) -> Path | None:
    """The cross-validation that the run is a fold of, if any."""
    above = RunDir(run.path.resolve().parent.parent)
    return above.path if above.study.exists() and above.predictions("oof").exists() else None


def after_training(
    run: RunDir, listener: Listener = nobody, source: Source | None = None, module: nn.Module | None = None
) -> None:
    """Write the report at the end of a training with val images; a failure becomes a note and a line of the log."""
    if not run.evaluation("val").exists():
        listener(Note("report  none, since there are no val images to report on"))
        return
    try:
        listener(Doing("writing the report"))
        listener(ReportWritten(report(run.path, source, module, listener)))
    except Exception as error:  # of any kind: hours of training must not count as failed because of a page
        line = f"warning: the report could not be written ({error}); try: {command('report', run.path)}"
        listener(Note(line))
        with suppress(OSError):  # a disk that refused the page may refuse this as well
            run.log(line)
