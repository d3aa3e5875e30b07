"""`convsmith explain` on a run of digits: heat maps, each figure, and each mistake as one line."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import convsmith
from convsmith.cli import main
from convsmith.data.preprocess import InputPixels
from convsmith.data.sources import from_arrays
from convsmith.errors import UserError
from convsmith.events import Counted, Note
from convsmith.explain import examples, landscape, network, trajectory
from convsmith.explain.attribution import SCORES, compare_with_random
from convsmith.explain.context import open_context
from convsmith.explain.explanation import explain, verdict
from convsmith.explain.gradcam import heat_maps
from convsmith.explain.options import FIGURES
from convsmith.explain.trajectory import trajectory_of
from convsmith.prediction.predictor import load_predictor

TRAIN = "train --epochs 2 --data.limit 400 --train.threads 1 --track.wandb off --name digits".split()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, runs/digits, and two images."""
    folder = tmp_path_factory.mktemp("werkstätte")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(TRAIN) == 0
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(folder / "bild-ä.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def inside(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    threads = torch.get_num_threads()
    yield workplace
    torch.set_num_threads(threads)


def call(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Run `explain`; its output, which is one line on stderr where it fails."""
    capsys.readouterr()
    result = main(["explain", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert result == code, out + err
    if code:
        assert len(err.splitlines()) == 1, err
        return err
    return out


class Page(HTMLParser):
    """What a page refers to, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.images = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [str(values[name]) for name in ("src", "href") if name in values]
        if tag == "img":
            self.images += 1
            assert values["alt"]
        if tag not in ("img", "meta", "link", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert not found.open
    assert all(source.startswith(("data:", "#")) for source in found.sources)
    assert not re.search(r"https?://", text)
    assert "default-src 'none'" in html.unescape(text)
    return found


def test_without_paths_the_most_informative_validation_images_are_explained(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = call(capsys, "runs/digits")
    folder = inside / "runs/digits/explain"
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 2 * examples.MOST_INFORMATIVE
    assert read_page(folder / "index.html").images == len(pictures)
    assert all(picture.name in out for picture in pictures)
    number = r"[+-]\d\.\d{3}"
    assert re.search(rf"deletion \d\.\d{{3}} against \d\.\d{{3}} with random maps, a difference of {number} ", out)
    assert re.search(rf"95% interval {number} to {number}", out)
    assert "next: convsmith explain runs/digits --figure feature-maps" in out
    val = set(json.loads((inside / "runs/digits/splits.json").read_text())["splits"]["val"])
    assert {picture.stem.partition("-")[2] for picture in pictures} <= val
    assert not (inside / "runs/digits/test-access.jsonl").exists(), "the test split was opened"


def test_an_image_of_ones_own_is_explained_for_the_class_and_at_the_stage_asked_for(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = call(capsys, "runs/digits", "bild-ä.png", "--class", "7", "--stage", "blocks.0")
    assert "Grad-CAM at stage blocks.0" in out
    row = next(line for line in out.splitlines() if line.startswith("bild-ä.png"))
    assert row.split()[2] == "7"
    assert (inside / "runs/digits/explain/01-bild-ä.png").exists()
    text = html.unescape((inside / "runs/digits/explain/index.html").read_text(encoding="utf-8"))
    assert "convsmith explain runs/digits 'bild-ä.png' --class 7 --stage blocks.0" in text


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"landscape"}))
def test_each_figure_is_one_command(name: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = call(capsys, "runs/digits", "--figure", name)
    explained = explain("runs/digits", figure=name)
    assert list(explained.figures) == [name]
    assert explained.text[0] in out.replace("\n", " ")
    with Image.open(inside / f"runs/digits/explain/{name}.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    assert read_page(inside / f"runs/digits/explain/{name}.html").images == 1
    following = re.search(r"next: convsmith explain runs/digits --figure (\S+)", out)
    assert following
    assert following.group(1) in FIGURES


def test_paths_come_before_or_after_flags_and_names_are_quoted(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("runs/digits", "runs/two words")
    for words in (
        ["runs/two words", "--figure", "pooling", "bild-ä.png"],
        ["--figure", "pooling", "runs/two words", "bild-ä.png"],
    ):
        out = call(capsys, *words)
        assert "next: convsmith explain 'runs/two words' --figure activations" in out
    assert "required: RUN (see" in call(capsys, code=2)


def test_the_landscape_has_the_path_of_the_run(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "POINTS", 3)
    monkeypatch.setattr(network, "POINTS", 3)
    out = call(capsys, "runs/digits", "--figure", "landscape")
    assert "computing the loss of" in out
    assert (inside / "runs/digits/explain/landscape.png").stat().st_size > 10_000


def test_the_path_begins_with_the_first_weights_and_names_the_model(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = open_context("runs/digits", "cpu")
    trajectory_ = trajectory_of(context)
    points, solution = trajectory_.points, trajectory_.solution
    assert list(points) == ["start", "epoch 1", "the model (epoch 2)"]
    assert solution == "the model (epoch 2)"
    assert "bit for bit" in trajectory_.source
    monkeypatch.setattr(trajectory, "QUICK", 0.0)
    kept = trajectory_of(context)
    assert "kept" in kept.source
    assert list(kept.points) == list(points), "a run of two epochs keeps them all, so both ways are the same path"
    for name, weights in kept.points.items():
        assert all(torch.equal(value, points[name][key]) for key, value in weights.items())
    images_, labels = context.sample(40)
    losses = {name: landscape.loss_of(context.model, images_, labels)(weights) for name, weights in points.items()}
    assert losses["start"] > losses["epoch 1"] > losses[solution]
    shutil.copytree("runs/digits", "runs/bare")
    shutil.rmtree("runs/bare/checkpoints")
    assert list(trajectory_of(open_context("runs/bare", "cpu")).points) == ["start", "the model"]
    monkeypatch.undo()
    assert list(trajectory_of(open_context(inside / "runs/bare", "cpu")).points) == list(points)


def test_a_repetition_that_goes_elsewhere_is_not_shown(inside: Path) -> None:
    shutil.copytree("runs/digits", "runs/elsewhere")
    config = Path("runs/elsewhere/config.yaml")
    config.write_text(re.sub(r"(?m)^( +seed:) 0$", r"\1 1", config.read_text("utf-8")), "utf-8")
    events: list[object] = []
    trajectory_ = trajectory_of(open_context("runs/elsewhere", "cpu"), events.append)
    assert "kept" in trajectory_.source
    assert isinstance(events[-1], Note)
    assert "ended at other weights" in events[-1].text


def test_the_start_of_the_path_is_where_training_began(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*TRAIN[:-1], "begun", "--optim.lr", "1e-12", "--epochs", "1", "--regularize.l2", "0"]) == 0
    monkeypatch.setattr(trajectory, "QUICK", 0.0)  # the start is then drawn anew from the seed
    trajectory_ = trajectory_of(open_context("runs/begun", "cpu"))
    for name, value in trajectory_.points["start"].items():
        torch.testing.assert_close(value, trajectory_.points[trajectory_.solution][name], rtol=0, atol=1e-6)


def test_informative_images_are_confident_mistakes_and_correct_predictions_of_many_classes() -> None:
    found = np.array(
        [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.6, 0.4, 0], [0.99, 0.01, 0], [0.1, 0, 0.9], [0.95, 0.05, 0]], np.float32
    )
    labels = np.array([1, 0, 0, 0, 2, 0])
    assert examples.most_informative(found, labels, None, 2) == ([0, 1], [3, 4])
    assert examples.most_informative(found, labels, None, 3) == ([0, 1], [3, 4, 5])
    assert examples.most_informative(found, labels, 1, 3) == ([0, 1], [])
    assert examples.most_informative(found, labels, 2, 3) == ([], [4])


def test_heat_maps_are_those_of_the_figures(inside: Path) -> None:
    context = open_context("runs/digits", "cpu")
    pixels = context.val.gather([0, 1, 2])
    classes = context.val_logits[:3].argmax(axis=1)
    found = heat_maps(context.model, context.to_input, InputPixels(pixels), classes)
    assert found.shape == (3, 8, 8)
    inputs = context.inputs(InputPixels(pixels))
    np.testing.assert_array_equal(context.seen(inputs), pixels)
    shown = [
        examples.Example(str(n), inputs[n], pixels[n], int(classes[n]), int(classes[n]), 1.0, None, "")
        for n in range(3)
    ]
    explained = examples.explain_examples(context, shown, context.stage(None))
    np.testing.assert_allclose([one.heat for one in explained], found, atol=1e-6)


def verdict_text(deletion: float, insertion: float, spread: float = 0.02, count: int = 8) -> str:
    """The verdict on maps that differ by this much from random ones, whose areas are about 0.5."""
    return verdict(
        [
            compare_with_random(name, [(0.5 + shift + spread * (-1) ** at, 0.5) for at in range(count)])
            for name, shift in zip(SCORES, (deletion, insertion), strict=True)
        ]
    )


def test_the_verdict_claims_what_the_intervals_show() -> None:
    assert verdict_text(-0.2, 0.2).endswith("By both scores, the maps are better than random ones.")
    assert verdict_text(0.2, -0.2).endswith("By both scores, the maps are worse than random ones.")
    assert verdict_text(0, 0).endswith("By both scores, no difference between the maps and random ones is shown.")
    assert verdict_text(-0.2, 0).endswith(
        "By deletion, the maps are better than random ones; by insertion, no difference between the maps and random "
        "ones is shown."
    )
    assert "Whether the maps are better than random ones is not judged from fewer than 5" in verdict_text(
        -0.2, 0.2, count=1
    )


def test_the_verdict_of_a_run_is_that_of_its_table(inside: Path) -> None:
    found = explain("runs/digits")
    for comparison in found.comparisons:
        ours = np.array([row[comparison.score] for row in found.table])
        random = np.array([row[f"{comparison.score}_random"] for row in found.table])
        paired = stats.ttest_rel(ours, random)
        np.testing.assert_allclose(comparison.ci95, paired.confidence_interval(0.95))
        low, high = (round(end, 3) for end in comparison.ci95)
        lower = "better" if comparison.score == "deletion" else "worse"
        higher = "worse" if comparison.score == "deletion" else "better"
        shown = lower if high < 0 else higher if low > 0 else "no difference shown"
        assert comparison.verdict == shown
    assert verdict(found.comparisons) == found.text[1]


def test_explain_is_a_function_that_prints_nothing(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[object] = []
    found = explain("runs/digits", ["bild-ä.png", "broken.png"], target="7", listener=events.append)
    assert capsys.readouterr() == ("", "")
    assert events == [Counted("explaining", 1, 1)]
    assert [row["image"] for row in found.table] == ["bild-ä.png"]
    assert found.table[0]["explained"] == "7"
    assert [name for name, _ in found.unreadable] == ["broken.png"]
    assert all(path.exists() for path in found.written)
    assert list(found.figures) == ["01-bild-ä"]
    predicted = load_predictor("runs/digits").predict("bild-ä.png")[0]
    assert found.table[0]["probability"] == pytest.approx(predicted.probabilities["7"], abs=1e-6)


def test_images_in_memory_are_explained_as_their_files_are(inside: Path) -> None:
    pixels = open_context("runs/digits", "cpu").val.gather([3])[0, :, :, 0]
    Image.fromarray(pixels).save("digit.png")
    with Image.open("digit.png") as image:
        found = explain("runs/digits", [image, pixels])
    expected = explain("runs/digits", "digit.png")
    assert [row["image"] for row in found.table] == ["image 1", "image 2"]
    for row in found.table:
        assert row["probability"] == pytest.approx(expected.table[0]["probability"], abs=1e-6)
        assert row["deletion"] == pytest.approx(expected.table[0]["deletion"], abs=1e-3)


def test_own_modules_and_arrays_are_explained(inside: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (80, 12, 12), dtype=np.uint8)
    labels = np.arange(80) % 2
    images[labels == 1, :6] //= 4
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 100, 2)
    )
    quiet = {"train": {"threads": 1}, "track": {"wandb": "off"}}
    convsmith.train((images, labels), net, epochs=1, name="own", **quiet)
    own = {"module": net, "source": from_arrays(images, labels)}
    found = explain("runs/own", **own)
    assert len(found.table) > 0
    assert {row["true"] for row in found.table} <= {"0", "1"}
    gradients = explain("runs/own", figure="gradients", **own)
    assert {row["net"] for row in gradients.table} == {network.TRAINED}
    assert {row["layer"] for row in gradients.table} == {"0", "3"}
    with pytest.raises(UserError):
        explain("runs/own")


def test_the_caption_of_gradients_says_what_is_drawn(inside: Path) -> None:
    found = explain("runs/digits", figure="gradients")
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in found.figures["gradients"].axes[0].lines}
    trained = drawn.pop(network.TRAINED)
    caption = found.text[0]
    assert f"{trained[0] / trained[-1]:.2g} in 'this model, trained'" in caption
    for name, values in drawn.items():
        assert f"{values[0] / values[-1]:.2g} in '{name}'" in caption
        assert f"that of '{name}' in {(trained < values).sum()} of {len(values)} layers" in caption


def test_the_caption_of_gradients_follows_the_numbers() -> None:
    larger = network.gradients_caption({network.TRAINED: {"a": 3.0, "b": 1.0}, "new": {"a": 2.0, "b": 0.5}})
    assert "is 3 in 'this model, trained' and 4 in 'new'" in larger
    assert "smaller than that of 'new' in 0 of 2 layers" in larger
    dead = network.gradients_caption({network.TRAINED: {"a": 0.0, "b": 0.0}})
    assert "divided by" not in dead


def test_the_caption_of_activations_promises_no_panel_that_is_missing(inside: Path) -> None:
    found = explain("runs/digits", figure="activations")
    shares = found.table
    assert len(found.figures["activations"].axes) == 3
    assert shares
    assert all(f"{row['share_below_zero']:.0%} in {row['layer']}" in found.text[0] for row in shares)
    legend = {text.get_text() for text in found.figures["activations"].axes[2].get_legend().get_texts()}
    assert legend == {f"{row['layer']}: {row['share_below_zero']:.0%} below 0" for row in shares}
    context = open_context("runs/digits", "cpu")
    bare = replace(context, predictor=replace(context.predictor, model=torch.nn.Sequential(torch.nn.Flatten())))
    drawn = network.activations(bare, network.FigureOptions())
    assert len(drawn.figure.axes) == 2
    assert "Below" not in drawn.caption


def test_the_caption_of_batch_norm_says_what_is_drawn(inside: Path) -> None:
    found = explain("runs/digits", figure="batch-norm")
    before = [row["mean_before"] for row in found.table]
    after = [row["mean_after"] for row in found.table]
    assert f"are {np.ptp(before):.2g} apart before and {np.ptp(after):.2g} after" in found.text[0]
    titles = [axes.get_title() for axes in found.figures["batch-norm"].axes]
    assert f"means {min(before):.2g} to {max(before):.2g}" in titles[0]
    assert f"means {min(after):.2g} to {max(after):.2g}" in titles[1]


def test_the_verb_knows_the_figures_without_importing_torch() -> None:
    code = "import sys; import convsmith.verbs.explain as verb; print(sorted(verb.FIGURES), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{sorted(network.DRAWN_BY)} False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none"], r"run 'runs/none' does not exist\. Runs in 'runs': .*digits"),
        (["runs/digits", "--class", "sevn"], "class 'sevn' does not exist.* Choices: 0, 1"),
        (
            ["runs/digits", "--stage", "blocks.7"],
            r"stage 'blocks\.7' does not exist.*Choices: blocks\.0, blocks\.1, hidden",
        ),
        (["runs/digits", "--stage", "hidden"], r"stage 'hidden' has no feature maps\. Stages that have: blocks\.0"),
        (["runs/digits", "--figure", "kernel"], "figure 'kernel' does not exist. Did you mean 'kernels'.*landscape"),
        (["runs/digits", "--figure", "kernels", "--stage", "x"], "stage 'x' does not exist"),
        (["runs/digits", "--figure", "kernels", "--stage", "hidden"], "no kernels larger than 1 x 1"),
        (["runs/digits", "--figure", "batch-norm", "--stage", "hidden"], "no batch norm"),
        (["runs/digits", "--figure", "feature-maps", "--stage", "hidden"], "has no feature maps"),
        (
            ["runs/digits", "--figure", "confusion", "--stage", "blocks.0"],
            "takes no --stage.*Figures that do: batch-norm",
        ),
        (["runs/digits", "bild-ä.png", "--figure", "kernels"], "takes no PATH.*Figures that do: feature-maps, pooling"),
        (["runs/digits", "broken.png", "--figure", "pooling"], "cannot read 'broken.png'"),
        (["runs/digits", "--figure", "pooling", "--class", "1"], "--class is for heat maps"),
        (["runs/digits", "a.png", "b.png", "--figure", "pooling"], "one PATH at most"),
        (["runs/digits", "nothing.png"], "no file matches 'nothing.png'"),
        (["runs/digits", "broken.png"], "no image could be read: broken.png"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, call(capsys, *arguments, code=2))


def test_what_can_be_read_is_explained_before_the_rest_is_refused(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = call(capsys, "runs/digits", "bild-ä.png", "broken.png", code=2)
    assert "1 file could not be read; the others were explained: broken.png" in message
    assert (inside / "runs/digits/explain/01-bild-ä.png").exists()


def test_a_run_without_a_model_says_what_makes_one(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/digits", "runs/early", dirs_exist_ok=True)
    shutil.rmtree("runs/early/model")
    Path("runs/early/summary.json").unlink()
    assert "has no model/model.json yet: convsmith resume runs/early writes it" in call(capsys, "runs/early", code=2)
