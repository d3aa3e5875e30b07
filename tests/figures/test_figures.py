import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from convsmith.figures import curves, matrices, style

ROWS = [
    {
        "epoch": epoch,
        "train_loss": 2 / epoch,
        "train_accuracy": 1 - 0.5 / epoch,
        "val_loss": 2.2 / epoch,
        "val_accuracy": 0.7 - 0.01 * abs(epoch - 7),
        "learning_rate": 1e-3 / epoch**2,
    }
    for epoch in range(1, 13)
]
RNG = np.random.default_rng(0)
FOREST = [
    ("batch norm in $every$ block, and a name that goes on and on", 3.0, 2.0, 4.1, "helps"),
    ("gelu", 0.1, 0.05, 0.15, "equivalent"),
    ("same everywhere", 1.0, None, None, "no difference shown"),
    ("average", -2.0, -3.0, -1.0, "hurts"),
    ("early", -0.4, -3.0, 2.2, "given up"),
]


def confusion(classes):
    return RNG.poisson(3, (classes, classes)), [f"class {i}" for i in range(classes)]


DRAWN = {
    "curves": lambda: curves.learning_curves(ROWS, 7),
    "one epoch": lambda: curves.learning_curves(ROWS[:1], 1),
    "2 classes": lambda: matrices.confusion_figure(*confusion(2)),
    "10 classes": lambda: matrices.confusion_figure(*confusion(10)),
    "60 classes": lambda: matrices.confusion_figure(*confusion(60)),
    "150 classes": lambda: matrices.confusion_figure(*confusion(150)),
    "nothing seen": lambda: matrices.confusion_figure(np.zeros((3, 3), dtype=int), ["a", "b", "c"]),
    "lr": lambda: curves.lr_curve([1e-4, 1e-3, 1e-2], [2.3, 1.1, 4.0], 1e-3),
    "forest": lambda: curves.forest_plot(FOREST, "accuracy (percentage points)", 0.5),
    "one arm": lambda: curves.forest_plot(FOREST[:1], "loss (nats)"),
    "40 arms": lambda: curves.forest_plot(FOREST * 8, "accuracy (percentage points)", 0.5),
}


def texts(figure):
    return [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_figures_fit_on_their_page(draw, tmp_path):
    figure = draw()
    path = tmp_path / "figure.png"
    style.save(figure, path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 5, "an empty page"
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edges > 250).all(), "cut off at an edge"


def test_pyplot_is_not_imported():
    code = "import sys; from convsmith.figures import curves; curves.lr_curve([1, 2], [1, 2])"
    code += "; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("epoch", "accuracy"), [(7, "70.0"), (12, "65.0")])
def test_curves_mark_the_kept_epoch(epoch, accuracy):
    figure = curves.learning_curves(ROWS, epoch)
    assert f"kept: epoch {epoch}, {accuracy} %" in texts(figure)
    stars = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "*" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in stars] == [[epoch], [epoch]]


def test_confusion_shows_the_counts_with_true_classes_in_rows():
    figure = matrices.confusion_figure(np.array([[5, 2], [0, 7]]), ["ants", "bees"])
    axes = figure.axes[0]
    shown = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "5", (0, 1): "2", (1, 0): "0", (1, 1): "7"}
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("True class", "Predicted class")
    np.testing.assert_allclose(axes.images[0].get_array(), [[5 / 7, 2 / 7], [0, 1]])


def test_many_classes_show_no_counts():
    assert not matrices.confusion_figure(*confusion(21)).axes[0].texts


def test_a_class_name_may_be_of_any_length(tmp_path):
    figure = matrices.confusion_figure(np.eye(2, dtype=int), ["a" * 250, "b"])
    style.save(figure, tmp_path / "figure.png")  # a warning that the axes find no room would be an error
    assert f"{'a' * 39}…" in texts(figure)


def test_class_names_may_be_in_any_script_and_hold_dollar_signs(tmp_path):
    names = ["日本", "$x$ {", "Ä_b^c"]
    figure = matrices.confusion_figure(np.eye(3, dtype=int), names)
    style.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0
    assert set(names) <= set(texts(figure))


def test_svg_is_written_without_a_date(tmp_path):
    style.save(curves.lr_curve([1e-3, 1e-2], [2, 1]), tmp_path / "lr.svg")
    text = (tmp_path / "lr.svg").read_text()
    assert text.startswith("<?xml")
    assert "dc:date" not in text
    style.save(curves.lr_curve([1e-3, 1e-2], [2, 1]), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text, "the ids are the same each time"


def test_the_forest_draws_intervals_from_top_to_bottom_and_says_the_verdicts():
    figure = curves.forest_plot(FOREST, "accuracy (percentage points)", 0.5)
    axes = figure.axes[0]
    assert axes.yaxis_inverted()
    spans = {line.get_ydata()[0]: tuple(line.get_xdata()) for line in axes.lines if len(set(line.get_xdata())) == 2}
    assert spans == {row: (low, high) for row, (_, _, low, high, _) in enumerate(FOREST) if low is not None}
    points = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() != "None"}
    assert {row: line.get_xdata()[0] for row, line in points.items()} == dict(enumerate(row[1] for row in FOREST))
    looks = {(line.get_marker(), line.get_color()) for line in points.values()}
    assert len({marker for marker, _ in looks}) == 5
    shown = texts(figure)
    assert axes.get_xlabel() == "Difference in accuracy (percentage points)"
    assert "Difference from the base (band: equivalence margin, ±0.5)" in shown
    told = {"+3.00  helps", "+0.10  equivalent", "+1.00  no difference shown", "-2.00  hurts", "-0.40  given up"}
    assert told <= set(shown)


def test_the_forest_has_a_look_for_every_verdict():
    from typing import get_args

    from convsmith.studies.statistics import Verdict

    assert set(curves.VERDICTS) == set(get_args(Verdict))


def drawn(axes):
    """How each line with data looks: colour, dash, marker."""
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1 and line.get_label()[0] != "_"]
    return [(line.get_color(), str(line._unscaled_dash_pattern), line.get_marker()) for line in lines]


@pytest.mark.parametrize("count", [1, 6, 7, 13, 36])
def test_every_net_of_a_gradient_figure_has_a_line_of_its_own(count):
    series = {f"net {number}": [0.1, 0.2, 0.3] for number in range(count)}
    axes = curves.gradient_figure(series, "gradients").axes[0]
    assert [line.get_label() for line in axes.lines] == list(series)
    assert len(set(drawn(axes))) == count
