"""The Python API: a few lines, own arrays, own network, own optimiser, notebook output."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convsmith
from convsmith.config import read_run_config
from convsmith.errors import UserError
from convsmith.prediction.predictor import Prediction

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
        "gray arrays in one": pixels,
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


def test_an_open_image_is_predicted_as_its_file(run: convsmith.Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    turned = Image.fromarray(rng.integers(0, 256, (30, 20), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(rng.integers(0, 65536, (30, 20), dtype=np.uint16)).save(tmp_path / "16 bits.png")
    Image.fromarray(rng.integers(0, 256, (30, 20, 4), dtype=np.uint8), "CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)).quantize(8).save(
        tmp_path / "palette.png", transparency=3
    )
    for file in tmp_path.iterdir():
        (wanted,), (opened,) = run.predict(file), run.predict(Image.open(file))
        assert opened.probabilities == wanted.probabilities, file.name


def test_a_file_that_cannot_be_read_is_named(run: convsmith.Run, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no image")
    (found,) = run.predict(tmp_path / "words.png")
    assert found.id == str(tmp_path / "words.png")
    assert "not-an-image" in str(found.error)


def test_only_val_and_test_are_evaluated(run: convsmith.Run) -> None:
    with pytest.raises(UserError, match=r"has no train split to evaluate\. Splits: val, test"):
        run.evaluate("train")
    assert not (run.directory / "evaluation-train.json").exists()


def test_a_damaged_model_is_refused(run: convsmith.Run, tmp_path: Path) -> None:
    shutil.copytree(run.directory, tmp_path / "run")
    weights = tmp_path / "run/model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged \(the checksum does not match\)"):
        convsmith.load(tmp_path / "run").predict(np.zeros((8, 8), np.uint8))
    weights.unlink()
    with pytest.raises(UserError, match=r"model.safetensors' cannot be read \(No such file"):
        convsmith.load(tmp_path / "run").predict(np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 8, 8), float("nan")), "values in [0, 1]"),
        (np.zeros((0, 8), np.uint8), "must be uint8"),
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


def test_own_arrays_network_and_optimiser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    told = capsys.readouterr().out
    assert 'next, in Python: run.evaluate("test")' in told
    assert "convsmith predict" not in told, "no command could pass the module and the arrays in"
    assert run.evaluate("test")["accuracy"] > 0.9
    again = convsmith.load(tmp_path / "own", model=Own(), data=own_data())
    assert again.evaluate("val")["accuracy"] == run.summary["val"]["accuracy"]
    assert again.predict(np.full((6, 6), 200, np.uint8))[0].label == "bright"
    with pytest.raises(UserError, match="your own module: pass it in"):
        convsmith.load(tmp_path / "own").predict(np.zeros((6, 6), np.uint8))
    with pytest.raises(UserError, match="arrays that were passed in"):
        convsmith.load(tmp_path / "own", model=Own()).evaluate("test")


def test_wrong_settings_are_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown setting 'epoch'\. Did you mean 'epochs'"):
        convsmith.train(epoch=3, runs_dir=tmp_path)
    with pytest.raises(UserError, match=r"unknown key 'augment\.hflop'. Did you mean 'hflip'"):
        convsmith.train(augment={"hflop": True}, runs_dir=tmp_path)
    for wrong, message in (
        ({"augment": True}, "augment must be a dict of settings"),
        (
            {"data": [1, 2]},
            r"data must be a name, a path, a list of paths, \(images, labels\) or a dict of settings, not list",
        ),
        ({"data": (1, 2, 3)}, r"data must be a pair \(images, labels\), not 3 values"),
        ({"data": ([[1], [2, 3]], [0, 1])}, "all images of one size"),
        ({"data": own_data(), "model": nn.Flatten()}, "model Flatten has no trainable parameters"),
        ({"data": own_data(), "model": nn.Linear(5, 2)}, r"model Linear fails on images \[2, 1, 6, 6\]"),
        ({"data": own_data(), "model": nn.Conv2d(1, 2, 3)}, r"returns \[2, 2, 4, 4\] for 2 images of 2 classes"),
        ({"data": own_data(), "optimizer": "sgd"}, "optimizer must be a function of parameter groups"),
        ({"data": own_data(), "optimizer": lambda groups: None}, "must return a torch optimiser, not NoneType"),
        ({"data": own_data(), "optimizer": lambda groups: torch.optim.SGD(groups[:1])}, "does not have the parameters"),
        (
            {"data": own_data(), "optimizer": lambda groups: torch.optim.SGD(groups[0]["params"])},
            "have lost their names",
        ),
    ):
        with pytest.raises(UserError, match=message):
            convsmith.train(runs_dir=tmp_path, **{**QUICK, **wrong})
    with pytest.raises(UserError, match="model must be a name, a torch module or a dict of settings, not int"):
        convsmith.train(model=3, runs_dir=tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_data_and_model_may_be_dicts_and_a_config_keeps_its_data(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {source: nowhere}")
    with pytest.raises(UserError, match=r"data\.source 'nowhere' does not exist"):
        convsmith.train(config=file, runs_dir=tmp_path)
    settings = {"runs_dir": tmp_path, "epochs": 1, **QUICK}
    run = convsmith.train({"source": own_data(), "image_size": 8}, {"name": "simple-cnn", "hidden": [5]}, **settings)
    config = read_run_config(run.files.config)
    assert (config.data.image_size, config.model.hidden) == (8, (5,))


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
        from convsmith.config import validate
        from convsmith.data.sources import from_arrays
        from convsmith.run import train
        from convsmith.training.own import Parts

        changed = images.copy()
        if number:
            changed[given == "test"] = 255
        source = from_arrays(changed, labels, given=given.tolist())
        config = validate(
            {"data": {"source": "arrays"}, **QUICK, "train": {"threads": 1, "epochs": 2, "layout": "contiguous"}}
        )
        train(config, Parts(source=source), str(number), tmp_path)
        weights.append((tmp_path / str(number) / "model/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_what_does_not_exist_is_told_with_the_nearest(run: convsmith.Run) -> None:
    with pytest.raises(UserError, match=r"format 'onxx' does not exist. Did you mean 'onnx'\?"):
        run.export("onxx")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"preprocessing 'graf' does not exist. Did you mean 'graph'\?"):
        run.export("onnx", preprocessing="graf")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"split 'tets' does not exist. Did you mean 'test'\?"):
        run.confusion("tets")


def test_a_run_serves_as_its_path(run: convsmith.Run) -> None:
    assert convsmith.load(run).directory == run.directory
    with pytest.raises(UserError, match="compare needs at least two runs"):
        convsmith.compare([run])
    with pytest.raises(UserError, match="compare needs at least two runs"):
        convsmith.compare(run)
    with pytest.raises(UserError, match="compare needs at least two runs"):
        convsmith.compare(str(run.directory))


def test_what_comes_back_is_one_line_in_a_notebook(run: convsmith.Run, tmp_path: Path) -> None:
    other = convsmith.train(
        data="digits", model="simple-cnn", epochs=1, name="other", runs_dir=tmp_path, show=False, **QUICK
    )
    found = convsmith.compare([run, other], out=tmp_path / "page.html")
    assert repr(found).startswith(f"Comparison('{tmp_path / 'page.html'}', {run.directory.name}: ")
    assert repr(convsmith.check_data("digits")) == "Audit('digits', {'ok': 1797})"


def test_a_batch_is_explained_image_by_image(run: convsmith.Run) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    assert len(run.explain(batch, show=False).table) == len(run.explain(list(batch), show=False).table) == 2
