"""The Python API: a few lines, own arrays, own network, own optimiser, notebook output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convsmith
from convsmith.errors import UserError
from convsmith.inference import Prediction

QUICK = {"track": {"wandb": "off"}, "train": {"threads": 1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> convsmith.Run:
    folder = tmp_path_factory.mktemp("api")
    return convsmith.train(data="digits", model="simple-cnn", epochs=3, runs_dir=folder, **QUICK)


def test_a_run_has_its_numbers(run: convsmith.Run) -> None:
    assert run.directory.name == "digits-simple-cnn-1"
    assert len(run.metrics) == 3
    assert run.summary["val"]["accuracy"] > 0.8
    record = run.evaluate("test")
    assert record["n"] == 359
    assert (run.directory / "test-access.jsonl").exists()
    assert len(run.curves().axes) > 0


def test_all_kinds_of_images_are_predicted_alike(run: convsmith.Run, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    pixels = np.rint(load_digits().images[:4] * (255 / 16)).astype(np.uint8)
    files = []
    for number, image in enumerate(pixels):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(files[-1])
    loaded = convsmith.load(run.directory)
    wanted = [(p.label, p.confidence) for p in loaded.predict(files)]
    assert wanted[0][0] == "0"
    others = {
        "strings": [str(file) for file in files],
        "PIL images": [Image.open(file) for file in files],
        "a batch": pixels[..., None],
        "arrays": list(pixels),
        "uint8 tensors": torch.from_numpy(pixels)[:, None],
        "float tensors": torch.from_numpy(pixels)[:, None].float() / 255,
    }
    for kind, images in others.items():
        assert [(p.label, p.confidence) for p in loaded.predict(images)] == wanted, kind
    single = loaded.predict(files[0])
    assert isinstance(single[0], Prediction)
    assert next(iter(single[0].probabilities)) == "0"
    assert sum(single[0].probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert loaded.predict([]) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 8, 8), 7.0), "values in [0, 1]"),
        (np.zeros((8, 8)), "must be uint8"),
        ({"no": "image"}, "cannot predict a dict"),
    ],
)
def test_what_is_no_image_is_refused(run: convsmith.Run, image: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        run.predict(image)
    assert message in str(error.value)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def own_data() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 120, (200, 6, 6), dtype=np.uint8)
    labels = np.array(["dark", "bright"])[np.arange(200) % 2]
    images[labels == "bright"] += 100
    return images, labels


def test_own_arrays_network_and_optimiser(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = convsmith.train(
        own_data(),
        Own(),
        optimizer=lambda groups: torch.optim.NAdam(groups, lr=0.02),
        name="own",
        runs_dir=tmp_path,
        epochs=15,
        **QUICK,
    )
    assert run.evaluate("test")["accuracy"] > 0.9
    again = convsmith.load(tmp_path / "own", model=Own(), data=own_data())
    assert again.evaluate("val")["accuracy"] == run.summary["val"]["accuracy"]
    assert again.predict(np.full((6, 6), 200, np.uint8))[0].label == "bright"
    with pytest.raises(UserError, match="a module of your own: hand it in"):
        convsmith.load(tmp_path / "own").predict(np.zeros((6, 6), np.uint8))
    with pytest.raises(UserError, match="arrays that were handed in"):
        convsmith.load(tmp_path / "own", model=Own()).evaluate("test")


def test_wrong_settings_are_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown setting 'epoch'\. Did you mean 'epochs'"):
        convsmith.train(epoch=3, runs_dir=tmp_path)
    with pytest.raises(UserError, match=r"unknown key 'augment\.hflop'. Did you mean 'hflip'"):
        convsmith.train(augment={"hflop": True}, runs_dir=tmp_path)
    with pytest.raises(UserError, match="model must be a name or a torch module, not int"):
        convsmith.train(model=3, runs_dir=tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_resume_of_a_finished_run_is_that_run(run: convsmith.Run) -> None:
    assert convsmith.resume(run.directory).summary == run.summary


def test_a_notebook_shows_numbers_and_curves(run: convsmith.Run) -> None:
    page = run._repr_html_()
    assert "<table>" in page
    assert "data:image/png;base64," in page
    assert repr(run) == f"Run({str(run.directory)!r})"


def test_training_cannot_reach_the_test_split(tmp_path: Path) -> None:
    """Other pixels and labels in the test split change nothing of what training makes."""
    images, labels = own_data()
    given = np.array((["train"] * 6 + ["val"] * 2 + ["test"] * 2) * 20)
    weights = []
    for number in range(2):
        from convsmith import parts
        from convsmith.config import validate
        from convsmith.data.sources import from_arrays
        from convsmith.display import Display

        changed = images.copy()
        if number:
            changed[given == "test"] = 255
        source = from_arrays(changed, labels, given=given.tolist())
        config = validate(
            {"data": {"source": "arrays"}, **QUICK, "train": {"threads": 1, "epochs": 2, "layout": "contiguous"}}
        )
        own = parts.Parts(source=source)
        started = parts.start(parts.prepare(config, own), tmp_path, str(number), own)
        assert Display().follow(started) == 0
        weights.append((tmp_path / str(number) / "model/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
