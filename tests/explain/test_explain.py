"""`convsmith explain` on a run of digits: heat maps, each figure, and each mistake as one line."""

from __future__ import annotations

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convsmith.cli import main
from convsmith.explain import images, landscape, network, trajectory
from convsmith.explain.context import open_subject
from convsmith.explain.gradcam import heat_maps
from convsmith.explain.trajectory import path_of
from convsmith.explain.write import verdict
from convsmith.verbs import explain as verb

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
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert not found.open
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert not re.search(r"https?://", text)
    assert "default-src 'none'" in text
    return found


def test_without_paths_the_telling_validation_images_are_explained(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = call(capsys, "runs/digits")
    folder = inside / "runs/digits/explain"
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 2 * images.TELLING
    assert read_page(folder / "index.html").images == len(pictures)
    assert all(picture.name in out for picture in pictures)
    assert re.search(r"deletion \d\.\d\d against \d\.\d\d by chance", out)
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


@pytest.mark.parametrize("name", sorted(set(network.FIGURES) - {"landscape"}))
def test_each_figure_is_one_command(name: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = call(capsys, "runs/digits", "--figure", name)
    assert network.FIGURES[name].caption in out.replace("\n", " ")
    with Image.open(inside / f"runs/digits/explain/{name}.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    assert read_page(inside / f"runs/digits/explain/{name}.html").images == 1
    following = re.search(r"next: convsmith explain runs/digits --figure (\S+)", out)
    assert following
    assert following.group(1) in network.FIGURES


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
    subject = open_subject("runs/digits", "cpu")
    trail = path_of(subject)
    points, solution = trail.points, trail.solution
    assert list(points) == ["start", "epoch 1", "the model (epoch 2)"]
    assert solution == "the model (epoch 2)"
    assert "bit for bit" in trail.source
    monkeypatch.setattr(trajectory, "QUICK", 0.0)
    kept = path_of(subject)
    assert "kept" in kept.source
    assert list(kept.points) == list(points), "a run of two epochs keeps them all, so both ways are the same path"
    for name, weights in kept.points.items():
        assert all(torch.equal(value, points[name][key]) for key, value in weights.items())
    images_, labels = subject.sample(40)
    losses = {name: landscape.loss_of(subject.model, images_, labels)(weights) for name, weights in points.items()}
    assert losses["start"] > losses["epoch 1"] > losses[solution]
    shutil.copytree("runs/digits", "runs/bare")
    shutil.rmtree("runs/bare/checkpoints")
    assert list(path_of(open_subject("runs/bare", "cpu")).points) == ["start", "the model"]
    monkeypatch.undo()
    assert list(path_of(open_subject(inside / "runs/bare", "cpu")).points) == list(points)


def test_a_repetition_that_goes_elsewhere_is_not_shown(inside: Path) -> None:
    shutil.copytree("runs/digits", "runs/elsewhere")
    config = Path("runs/elsewhere/config.yaml")
    config.write_text(re.sub(r"(?m)^( +seed:) 0$", r"\1 1", config.read_text("utf-8")), "utf-8")
    said: list[str] = []
    trail = path_of(open_subject("runs/elsewhere", "cpu"), said.append)
    assert "kept" in trail.source
    assert "came to other weights" in said[-1]


def test_the_start_of_the_path_is_where_training_began(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*TRAIN[:-1], "begun", "--optim.lr", "1e-12", "--epochs", "1", "--regularize.l2", "0"]) == 0
    monkeypatch.setattr(trajectory, "QUICK", 0.0)  # the start is then drawn anew from the seed
    trail = path_of(open_subject("runs/begun", "cpu"))
    for name, value in trail.points["start"].items():
        torch.testing.assert_close(value, trail.points[trail.solution][name], rtol=0, atol=1e-6)


def test_telling_images_are_the_surest_mistakes_and_hits_of_many_classes() -> None:
    chances = np.array(
        [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.6, 0.4, 0], [0.99, 0.01, 0], [0.1, 0, 0.9], [0.95, 0.05, 0]], np.float32
    )
    labels = np.array([1, 0, 0, 0, 2, 0])
    assert images.telling(chances, labels, None, 2) == ([0, 1], [3, 4])
    assert images.telling(chances, labels, None, 3) == ([0, 1], [3, 4, 5])
    assert images.telling(chances, labels, 1, 3) == ([0, 1], [])
    assert images.telling(chances, labels, 2, 3) == ([], [4])


def test_heat_maps_are_those_of_the_figures(inside: Path) -> None:
    subject = open_subject("runs/digits", "cpu")
    pixels = subject.val.gather([0, 1, 2])
    classes = subject.val_logits[:3].argmax(axis=1)
    found = heat_maps(subject.model, subject.to_input, pixels, classes)
    assert found.shape == (3, 8, 8)
    np.testing.assert_array_equal(subject.seen(pixels), pixels)
    stage = images.stage_of(subject, None)
    cases = [images.Case(str(n), pixels[n], int(classes[n]), int(classes[n]), 1.0, None, "") for n in range(3)]
    explained = images.explain(subject, cases, stage, lambda done, total: None)
    np.testing.assert_allclose([one.heat for one in explained], found, atol=1e-6)


def test_the_verdict_counts_the_images_that_beat_chance() -> None:
    case = images.Case("a", np.zeros((4, 4, 1), np.uint8), 0, 0, 1.0, None, "")
    low, high = torch.full((17,), 0.25), torch.full((17,), 0.75)
    flat = np.zeros((4, 4), np.float32)
    good = images.Explained(case, flat, flat, (low, high), (high, low))
    bad = images.Explained(case, flat, flat, (high, low), (high, low))
    told = verdict([good, bad, bad])
    assert (
        "deletion 0.58 against 0.42 by chance, lower in 1 of 3; insertion 0.75 against 0.25, higher in 3 of 3" in told
    )
    assert told.endswith("by one of the two scores.")
    assert verdict([good]).endswith("by both scores.")


def test_the_verb_knows_the_figures_without_importing_them() -> None:
    assert tuple(sorted(network.FIGURES)) == verb.FIGURES


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
    assert "1 files could not be read, the others were explained: broken.png" in message
    assert (inside / "runs/digits/explain/01-bild-ä.png").exists()


def test_a_run_without_a_model_says_what_makes_one(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/digits", "runs/early", dirs_exist_ok=True)
    shutil.rmtree("runs/early/model")
    Path("runs/early/summary.json").unlink()
    assert "has no model/model.json yet: convsmith resume runs/early makes it" in call(capsys, "runs/early", code=2)
