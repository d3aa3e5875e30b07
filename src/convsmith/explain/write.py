"""From explanations and figures to the files in `explain/` of the run directory."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convsmith.explain.attribution import RANDOM_ORDERS, occlusion_window
from convsmith.explain.context import Subject
from convsmith.explain.gradcam import overlay
from convsmith.explain.images import Explained
from convsmith.explain.network import FIGURES
from convsmith.explain.page import Shown, page
from convsmith.figures.layers import explanation_figure
from convsmith.files import explain_os_errors, write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADINGS = ("image", "true", "predicted", "asked about", "probability", "deletion", "insertion", "file")


def write_images(
    subject: Subject, explained: Sequence[Explained], stage: str, command: str
) -> tuple[list[list[str]], list[Path]]:
    """A PNG for each image and index.html; the rows of the table under HEADINGS, and the files."""
    classes, folder = subject.classes, subject.folder
    rows, shown, files = [], [], []
    with explain_os_errors(f"'{folder}'"):
        for number, entry in enumerate(explained, start=1):
            case, peak = entry.case, float(entry.covered.max())
            covered = np.clip(entry.covered, 0, None) / (peak if peak > 0 else 1.0)
            truth = "" if case.label is None else f"true {classes[case.label]}, "
            words = f"{truth}predicted {classes[case.predicted]}; '{classes[case.target]}' has {case.probability:.1%}"
            curves = {"deletion": entry.deletion, "insertion": entry.insertion}
            figure = explanation_figure(
                case.pixels,
                f"{_short(case.id)}: {words}",
                overlay(case.pixels, entry.heat),
                stage,
                overlay(case.pixels, covered),
                peak,
                curves,
            )
            file = folder / f"{number:02d}-{_plain(case.id)}.png"
            png = png_of(figure)
            write_bytes(file, png)
            files.append(file)
            scores = [f"{ours:.2f} ({chance:.2f})" for ours, chance in map(entry.areas, curves.values())]
            names = ["" if at is None else classes[at] for at in (case.label, case.predicted, case.target)]
            rows.append([case.id, *names, f"{case.probability:.1%}", *scores, file.name])
            why = f", {case.why}" if case.why else ""
            shown.append(Shown(png, f"Heat maps and curves of {case.id}: {words}", f"{case.id}{why}: {words}."))
        index = folder / "index.html"
        intro = [reading(subject, stage), verdict(explained)]
        write_text(index, page(f"{subject.run.name}: what the net looked at", intro, [HEADINGS, *rows], shown, command))
    return rows, [index, *files]


def write_figure(subject: Subject, name: str, figure: Figure, command: str) -> list[Path]:
    """<name>.png and <name>.html."""
    caption = FIGURES[name].caption
    image, html = subject.folder / f"{name}.png", subject.folder / f"{name}.html"
    with explain_os_errors(f"'{subject.folder}'"):
        png = png_of(figure)
        write_bytes(image, png)
        shown = Shown(png, f"Figure {name} of {subject.run.name}. {caption}", caption)
        write_text(html, page(f"{subject.run.name}: {name}", [], [], [shown], command))
    return [html, image]


def reading(subject: Subject, stage: str) -> str:
    """How the pictures are to be read."""
    window, stride = occlusion_window(subject.predictor.card.preprocessing.image_size)
    return (
        f"Grad-CAM at stage {stage} (enlarged bilinearly, each to its own maximum) shows where the net found evidence "
        "for the class asked about. Occlusion, the second opinion, shows where covering costs its probability: a "
        f"{window} x {window} square of the mean colour moves in steps of {stride}. "
        "Deletion: area under the probability as the hottest pixels go first, lower is better. Insertion: as they come "
        "first into a blurred image, higher is better. In brackets: the mean of "
        f"{RANDOM_ORDERS} random maps that are as coarse."
    )


def verdict(explained: Sequence[Explained]) -> str:
    """What the heat maps are worth on the whole, against chance."""
    gone = np.array([entry.areas(entry.deletion) for entry in explained])
    come = np.array([entry.areas(entry.insertion) for entry in explained])
    lower, higher = int((gone[:, 0] < gone[:, 1]).sum()), int((come[:, 0] > come[:, 1]).sum())
    count, half = len(explained), len(explained) / 2
    words = ("neither score", "one of the two scores", "both scores")[int(lower > half) + int(higher > half)]
    beaten = "The map beats chance" if count == 1 else "The maps beat chance in more than half of the images"
    return (
        f"Over {count} {'image' if count == 1 else 'images'}: deletion {gone[:, 0].mean():.2f} against "
        f"{gone[:, 1].mean():.2f} by chance, lower in {lower} of {count}; insertion {come[:, 0].mean():.2f} against "
        f"{come[:, 1].mean():.2f}, higher in {higher} of {count}. {beaten} by {words}."
    )


def png_of(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names in scripts that the font does not have show as boxes: no reason to alarm anyone.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _plain(name: str) -> str:
    """The last part of an id as a file name."""
    return re.sub(r"[^\w.-]+", "-", Path(name).stem)[-60:] or "image"


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"…{name[-59:]}"
