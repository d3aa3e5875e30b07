"""predict_onnx.py prepares each image as `predict` does, whatever the preprocessing and the form of the file."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convsmith.data.config import Preprocessing
from convsmith.data.decode import DecodeError
from convsmith.data.preprocess import ToInput, prepare
from convsmith.prediction.model_file import ModelCard
from convsmith.prediction.script import is_script, script

CLASSES = ("cat", "sea lion", "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE}", "it's")


def card(**settings: Any) -> ModelCard:
    values = {"working_size": 16, "image_size": 16, "channels": 3, "resize": "stretch", "interpolation": "bilinear"}
    values |= {"background": "teal"} | settings
    channels = values["channels"]
    rules = Preprocessing(mean=(0.4,) * channels, std=(0.3,) * channels, **values)
    return ModelCard(architecture=None, classes=CLASSES, preprocessing=rules, layout="contiguous")


def loaded(text: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the program, with a runtime that opens nothing."""
    metadata = types.SimpleNamespace(custom_metadata_map={"sha256": '"abc"'})
    session = types.SimpleNamespace(get_modelmeta=lambda: metadata)
    runtime = types.SimpleNamespace(InferenceSession=lambda *_, **__: session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)  # type: ignore[arg-type]
    names = {"__name__": "predict_onnx", "__file__": "predict_onnx.py"}
    exec(compile(text, "predict_onnx.py", "exec"), names)
    return names


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Each form of file that needs care, wide and high."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (31, 44, 3), np.uint8)
    colour = Image.fromarray(pixels)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        colour.save(folder / f"turned-{turn}.jpg", exif=exif)
        colour.save(folder / f"turned-{turn}.tif", exif=exif)
    colour.rotate(90, expand=True).save(folder / "high.webp")
    colour.resize((16, 16)).save(folder / "exact.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("P").save(folder / "palette.gif")
    colour.convert("1").save(folder / "bits.png")
    gray = colour.convert("L")
    gray.save(folder / "gray.png")
    gray.save(folder / "gray-key.png", transparency=int(np.asarray(gray)[3, 3]))
    colour.save(folder / "colour-key.png", transparency=tuple(map(int, pixels[3, 3])))
    for mode in ("RGBA", "LA"):
        translucent = colour.convert(mode)
        translucent.putalpha(Image.linear_gradient("L").resize(colour.size))
        translucent.save(folder / f"translucent-{mode}.png")
    deep = rng.integers(0, 65536, (31, 44)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tif")
    Image.fromarray(rng.random((20, 9), np.float32)).save(folder / "floats.tif")
    np.save(folder / "colour.npy", pixels)
    np.save(folder / "gray.npy", deep)
    return sorted(folder.iterdir())


WAYS = [("stretch", 1.0), ("pad", 1.0), ("crop", 1.0), ("crop", 0.7)]
FILTERS = ["bilinear", "bicubic"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("interpolation", FILTERS)
def test_pixels_are_those_of_predict(
    pictures: list[Path], way: tuple[str, float], interpolation: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size, limits in ((16, "full"), ((12, 20), (0.1, 30_000.0)), ((20, 12), "full")):
        settings = {"resize": way[0], "crop": way[1], "interpolation": interpolation, "range": limits}
        model = card(channels=channels, image_size=size, working_size=size, **settings)
        program = loaded(script("model.onnx", "abc", model, takes_pixels=True), monkeypatch)
        for file in pictures:
            found = program["pixels_of"](file)
            np.testing.assert_array_equal(found, prepare(file, model.preprocessing).array[0], err_msg=file.name)
            assert program["model_input"](found) is found


def test_real_and_rare_files_give_the_same_pixels(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [*sorted((shared / "data" / "pngsuite").rglob("[a-wyz]*.png"))]
    files += sorted((shared / "data" / "ants_bees").rglob("*.jpg"))[::40]
    assert len(files) > 100
    for channels in (1, 3):
        model = card(channels=channels, resize="crop", crop=0.875, interpolation="bicubic", working_size=24)
        program = loaded(script("model.onnx", "abc", model, takes_pixels=True), monkeypatch)
        for file in files:
            try:
                expected = prepare(file, model.preprocessing).array[0]
            except DecodeError:
                continue
            np.testing.assert_array_equal(program["pixels_of"](file), expected, err_msg=file.name)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_other_numbers_of_channels_are_taken_as_they_are(
    tmp_path: Path, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = card(channels=channels, resize="pad")
    program = loaded(script("model.onnx", "abc", model, takes_pixels=True), monkeypatch)
    rng = np.random.default_rng(channels)
    np.save(tmp_path / "bytes.npy", rng.integers(0, 256, (31, 44, channels), np.uint8))
    np.save(tmp_path / "deep.npy", rng.integers(0, 65536, (31, 44, channels)).astype(np.uint16))
    if channels in (2, 4):
        pixels = rng.integers(0, 256, (31, 44, channels), np.uint8)
        Image.fromarray(pixels, {2: "LA", 4: "RGBA"}[channels]).save(tmp_path / "bands.png")
    for file in tmp_path.iterdir():
        np.testing.assert_array_equal(program["pixels_of"](file), prepare(file, model.preprocessing).array[0])
    Image.new("RGB", (9, 9)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match=f"the image has 3 channels, but the model takes {channels}"):
        program["pixels_of"](tmp_path / "colour.png")


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("size", "working"), [(16, 16), (12, 16), (16, 20), ((12, 20), (14, 22))])
def test_normalised_floats_are_those_of_predict(
    pictures: list[Path], size: Any, working: Any, interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model = card(image_size=size, working_size=working, interpolation=interpolation)
    program = loaded(script("model.onnx", "abc", model, takes_pixels=False), monkeypatch)
    for file in pictures[:6]:
        pixels = prepare(file, model.preprocessing).tensor(torch.device("cpu"))
        expected = ToInput(model.preprocessing, torch.device("cpu"))(pixels)[0].numpy()
        found = program["model_input"](program["pixels_of"](file))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_names_are_data_and_the_program_is_known_again() -> None:
    names = ("\N{RIGHT-TO-LEFT OVERRIDE}", '"]; raise SystemExit("', "{{input}}", "line\nbreak")
    model = card().model_copy(update={"classes": names})
    text = script('a"b.onnx', "abc", model, takes_pixels=True)
    assert text.isascii()
    found: dict[str, Any] = {}
    start, end = text.index("MODEL ="), text.index("CHANNELS =")
    exec(text[start:end], found)
    assert found["CLASSES"] == list(names)
    assert found["MODEL"] == 'a"b.onnx'
    assert is_script(text.encode())
    assert not is_script(b"print('mine')\n")


def test_a_model_that_was_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"model\.onnx is not the file that this program was written for"):
        loaded(script("model.onnx", "another", card(), takes_pixels=True), monkeypatch)
