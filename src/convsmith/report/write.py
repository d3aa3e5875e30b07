"""Write report.html of a finished run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import nn

from convsmith.data.sources import Source
from convsmith.report import looks, sections
from convsmith.report.material import Material, read_material
from convsmith.report.page import render
from convsmith.report.pictures import Gallery
from convsmith.rundir import RunDir, explain_os_errors, write_text

NAME = "report.html"


def write_report(path: Path, source: Source | None = None, module: nn.Module | None = None) -> Path:
    """Write <run>/report.html and return where it is; `source` and `module` where data or network are the user's own.

    UserError where the run is not finished or a file is missing. The test split stays sealed.
    """
    material = read_material(path, source, module)
    target = material.run.path / NAME
    with explain_os_errors(f"'{target}'"):
        write_text(target, page(material))
    return target


def page(material: Material) -> str:
    """report.html of the material."""
    gallery = Gallery(material.dataset.val if material.dataset else None, material.predictions.ids)
    confusion = looks.confusion(material, gallery)
    values = {
        "run": material.run,
        "summary": material.summary,
        "config": material.config,
        "result": sections.result(material),
        "diagnosis": sections.diagnosis(material),
        "curves": sections.curves(material),
        "confusion": confusion,
        "classes": sections.per_class(material),
        "mistakes": looks.mistakes(material, gallery),
        "doubtful": looks.doubtful_labels(material, gallery),
        "calibration": sections.calibration(material),
        "layers": sections.layers(material),
        "data": sections.data(material),
        "samples": looks.samples(material),
        "reproduction": sections.reproduction(material),
        "shown": {"images": {str(at): uri for at, uri in gallery.uris.items()}, "cells": confusion["shots"]},
    }
    return render("report.html", values)


def after_training(
    run: RunDir, say: Callable[[str], None], source: Source | None = None, module: nn.Module | None = None
) -> None:
    """The report at the end of a training, with a line to `say`; whatever goes wrong with it, the run is done."""
    try:
        say(f"report  {write_report(run.path, source, module)}")
    except Exception as error:  # of any kind: hours of training must not end as failed for want of a page
        line = f"warning: the report could not be written ({error}); try: convsmith report {run.path}"
        print(line, file=sys.stderr)
        with suppress(OSError):  # the disk that refused the page may refuse this as well
            run.log(line)
