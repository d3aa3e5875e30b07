"""`explain`: from a run to an `Explanation` with numbers, figures and the files in `explain/` of the run directory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from convsmith.contracts import seen_channels
from convsmith.data.sources import Source
from convsmith.errors import UserError, choose, command
from convsmith.events import Listener, Note, nobody
from convsmith.explain.attribution import (
    DIGITS,
    FEWEST,
    RANDOM_ORDERS,
    SCORES,
    Comparison,
    compare_with_random,
    occlusion_window,
)
from convsmith.explain.context import ExplainContext, open_context
from convsmith.explain.examples import (
    MOST,
    Explained,
    class_index,
    examples_of_images,
    explain_examples,
    most_informative_examples,
)
from convsmith.explain.gradcam import overlay
from convsmith.explain.network import FigureOptions, draw
from convsmith.explain.options import FIGURES
from convsmith.figures.layers import explanation_figure
from convsmith.figures.page import png_uri, render
from convsmith.figures.style import png_of
from convsmith.files import explain_os_errors, write_bytes, write_text
from convsmith.memory import explain_memory_errors
from convsmith.prediction.inputs import as_list, find_images
from convsmith.terminal import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("templates") / "explain.html"


@dataclass(frozen=True, eq=False)
class Explanation:
    """The result of `explain`, and the files that it has written below `directory`.

    `text` has one paragraph on how to read the figures and one on what they show. `table` has one row per image (true,
    predicted and explained class, probability, areas under the curves of deletion and insertion for the map and for
    random maps), or the numbers in a figure of the net. `figures` are matplotlib figures by the name of their PNG. For
    images there are also `examples` with their maps and curves, `comparisons` of the maps with random ones, and
    `unreadable`, the images that did not decode, with the reasons.
    """

    directory: Path
    text: tuple[str, ...]
    table: list[dict[str, Any]] = field(repr=False)
    written: tuple[Path, ...]
    figures: dict[str, Figure] = field(repr=False)
    comparisons: tuple[Comparison, ...] = ()
    examples: tuple[Explained, ...] = field(default=(), repr=False)
    unreadable: tuple[tuple[str, str], ...] = ()


@explain_memory_errors("in the explanation")
def explain(
    run: str | Path,
    paths: Any = (),
    target: str | None = None,
    stage: str | None = None,
    figure: str | None = None,
    device: str = "auto",
    module: nn.Module | None = None,
    source: Source | None = None,
    listener: Listener = nobody,
    flags: Sequence[str] = (),
) -> Explanation:
    """Explain what a run's model looks at in images, or draw one `figure` of how it works.

    `paths`: files, folders, patterns or images, as `Predictor.predict` takes them; by default, the most informative
    validation images. `target`: the class to explain (default: the predicted one). `stage`: the stage that
    Grad-CAM uses (default: the last one with feature maps), or that a figure shows. `module` and `source`: the net and
    the data if they are the user's own, or if the data have moved; then `flags` are the words of a command that say so.
    UserError for names that do not exist, and for options that do not go together.
    """
    if figure is not None and figure not in FIGURES:
        raise choose("figure", figure, FIGURES)
    if figure is not None and target is not None:
        raise UserError("--class is for heat maps: leave it out, or leave --figure out")
    context = open_context(run, device, module, source)
    given = as_list(paths, context.predictor.card.preprocessing.channels)
    if figure is not None and len(given) > 1:
        raise UserError(f"figure '{figure}' shows one image: give one PATH at most")
    own = module is not None or (source is not None and not flags)
    made_by = _made_by(run, given, target, stage, figure, own, flags)
    if figure is not None:
        return _explain_net(context, figure, FigureOptions(next(iter(_images(given)), None), stage, listener), made_by)
    return _explain_images(context, _images(given), target, stage, made_by, listener)


def _explain_net(context: ExplainContext, name: str, options: FigureOptions, made_by: str) -> Explanation:
    drawn = draw(context, name, options)
    image, html = context.folder / f"{name}.png", context.folder / f"{name}.html"
    with explain_os_errors(f"'{context.folder}'"):
        png = png_of(drawn.figure)
        write_bytes(image, png)
        shown = _shown(png, f"Figure {name} of {context.run.name}", name)
        write_text(html, _page(f"{context.run.name}: {name}", [drawn.caption], [], [shown], made_by))
    return Explanation(context.folder, (drawn.caption,), drawn.table, (html, image), {name: drawn.figure})


def _explain_images(
    context: ExplainContext,
    images: Sequence[Any],
    target: str | None,
    stage: str | None,
    made_by: str,
    listener: Listener,
) -> Explanation:
    wanted, at = class_index(context, target), context.stage(stage)
    unreadable: list[tuple[str, str]] = []
    if images:
        if len(images) > MOST:
            listener(Note(f"the first {MOST} of {len(images)} images are explained"))
        examples, unreadable = examples_of_images(context, images[:MOST], wanted)
    else:
        examples = most_informative_examples(context, wanted)
    explained = explain_examples(context, examples, at, listener)
    figures = {
        f"{number:02d}-{_plain(entry.example.id)}": _figure_of(context, entry, at)
        for number, entry in enumerate(explained, start=1)
    }
    table = [_row(context, entry, f"{name}.png") for entry, name in zip(explained, figures, strict=True)]
    comparisons = tuple(compare_with_random(name, [entry.scores[name].areas for entry in explained]) for name in SCORES)
    text = (reading(context, at), verdict(comparisons))
    index, folder = context.folder / "index.html", context.folder
    written, shown = [index], []
    with explain_os_errors(f"'{folder}'"):
        for entry, (name, figure) in zip(explained, figures.items(), strict=True):
            png, words = png_of(figure), _words(context, entry)
            written.append(folder / f"{name}.png")
            write_bytes(written[-1], png)
            why = f", {entry.example.why}" if entry.example.why else ""
            alternative = f"Heat maps and curves of {entry.example.id}: {words}"
            shown.append(_shown(png, alternative, f"{entry.example.id}{why}: {words}."))
        title = f"{context.run.name}: what the net looked at"
        write_text(index, _page(title, text, list(map(cells, table)), shown, made_by))
    return Explanation(folder, text, table, tuple(written), figures, comparisons, tuple(explained), tuple(unreadable))


def _page(title: str, text: Sequence[str], rows: list[list[str]], figures: list[dict[str, str]], made_by: str) -> str:
    values = {"title": title, "text": text, "headings": HEADINGS, "rows": rows, "figures": figures}
    return render(TEMPLATE, values | {"command": made_by})


def _shown(png: bytes, alternative: str, caption: str) -> dict[str, str]:
    """A figure on the page: the picture, its alternative text, and its caption."""
    return {"uri": png_uri(png), "alternative": alternative, "caption": caption}


HEADINGS = ("image", "true", "predicted", "explained", "probability", "deletion", "insertion", "file")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table of images as text, in the order of HEADINGS."""
    scores = [f"{row[name]:.2f} ({row[f'{name}_random']:.2f})" for name in SCORES]
    names = [row[name] or "" for name in ("image", "true", "predicted", "explained")]
    return [*names, f"{row['probability']:.1%}", *scores, row["file"]]


def _row(context: ExplainContext, entry: Explained, file: str) -> dict[str, Any]:
    example, classes = entry.example, context.classes
    areas = {name: judged.areas for name, judged in entry.scores.items()}
    return {
        "image": example.id,
        "true": None if example.label is None else classes[example.label],
        "predicted": classes[example.predicted],
        "explained": classes[example.target],
        "probability": example.probability,
        **{name: ours for name, (ours, _) in areas.items()},
        **{f"{name}_random": random for name, (_, random) in areas.items()},
        "file": file,
    }


def _words(context: ExplainContext, entry: Explained) -> str:
    example, classes = entry.example, context.classes
    truth = "" if example.label is None else f"true {classes[example.label]}, "
    return f"{truth}predicted {classes[example.predicted]}; '{classes[example.target]}' has {example.probability:.1%}"


def _figure_of(context: ExplainContext, entry: Explained, stage: str) -> Figure:
    example, drop = entry.example, float(entry.covered.max())
    covered = np.clip(entry.covered, 0, None) / (drop if drop > 0 else 1.0)
    return explanation_figure(
        example.pixels,
        f"{_short(example.id)}: {_words(context, entry)}",
        overlay(example.pixels, entry.heat),
        stage,
        overlay(example.pixels, covered),
        drop,
        {name: (judged.curve, judged.random) for name, judged in entry.scores.items()},
        {name: judged.areas for name, judged in entry.scores.items()},
    )


def reading(context: ExplainContext, stage: str) -> str:
    """How to read the figures of images."""
    window, stride = occlusion_window(context.image_size)
    channels = seen_channels(context.predictor.card.preprocessing.channels)
    return (
        f"Grad-CAM at stage {stage} (enlarged bilinearly, each map scaled to its own maximum) shows where the net "
        "found evidence for the explained class. Occlusion, the second opinion, shows where covering the image lowers "
        f"the probability of that class: a {window} x {window} square of the mean colour moves in steps of {stride}. "
        "Deletion is the area under the curve of the probability as the hottest pixels are removed first; lower is "
        "better. Insertion is the same area as they are restored first in a blurred image; higher is better. The mean "
        f"of {RANDOM_ORDERS} random maps of the same coarseness is given in brackets.{' ' * bool(channels)}{channels}"
    )


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Whether the heat maps are better than random ones overall, and the numbers that this rests on."""
    count = comparisons[0].n
    numbers = []
    for found in comparisons:
        interval = f" (95% interval {_signed(found.ci95[0])} to {_signed(found.ci95[1])})" if found.ci95 else ""
        numbers.append(
            f"{found.score} {found.mean:.{DIGITS}f} against {found.random:.{DIGITS}f} with random maps, a difference "
            f"of {_signed(found.difference)}{interval}"
        )
    means = f"Mean over {plural(count, 'image')}: {'; '.join(numbers)}."
    if any(found.ci95 is None for found in comparisons):
        return f"{means} Whether the maps are better than random ones is not judged from fewer than {FEWEST} images."
    words = {
        "better": "the maps are better than random ones",
        "worse": "the maps are worse than random ones",
        "no difference shown": "no difference between the maps and random ones is shown",
    }
    first, *others = comparisons
    if all(found.verdict == first.verdict for found in others):
        return f"{means} By both scores, {words[first.verdict]}."
    return f"{means} {'; '.join(f'by {found.score}, {words[found.verdict]}' for found in comparisons).capitalize()}."


def _signed(value: float) -> str:
    rounded = round(value, DIGITS) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:+.{DIGITS}f}" if rounded else f"{0:.{DIGITS}f}"


def _images(given: Sequence[Any]) -> list[Any]:
    """The images, with folders and patterns replaced by the paths that they stand for."""
    found: list[Any] = []
    for image in given:
        found += find_images([str(image)]) if isinstance(image, str | Path) else [image]
    return found


def _made_by(
    run: str | Path,
    given: Sequence[Any],
    target: str | None,
    stage: str | None,
    figure: str | None,
    own: bool,
    further: Sequence[str],
) -> str:
    """The command that makes the page again, or the Python call where no command can."""
    if not own and all(isinstance(image, str | Path) for image in given):
        parts = ["explain", str(run), *map(str, given)]
        for flag, value in (("--class", target), ("--stage", stage), ("--figure", figure)):
            parts += [flag, value] if value is not None else []
        return command(*parts, *further)
    options = {"target": target, "stage": stage, "figure": figure}
    arguments = ["images"] if given else []
    arguments += [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return f"convsmith.load({str(run)!r}).explain({', '.join(arguments)})"


def _plain(name: str) -> str:
    """The last part of an id as a file name."""
    return re.sub(r"[^\w.-]+", "-", Path(name).stem)[-60:] or "image"


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"…{name[-59:]}"
