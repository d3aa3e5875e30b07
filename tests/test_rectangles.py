"""Inputs that are no squares, and of any number of channels, from the files to an exported model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as F

import convsmith
from convsmith.contracts import covers, hw, seen_channels, size_of, size_text
from convsmith.data.augment import crop_and_rotate
from convsmith.data.config import AugmentConfig, DataConfig, DecodeRules, Preprocessing
from convsmith.data.decode import from_array
from convsmith.data.preprocess import ToInput
from convsmith.explain.gradcam import _alike
from convsmith.export import FromPixels

SIDES = st.tuples(st.integers(4, 40), st.integers(4, 40))


def preprocessing(image: object, working: object, channels: int = 3) -> Preprocessing:
    values = {"mean": (0.4,) * channels, "std": (0.2,) * channels, "resize": "stretch", "interpolation": "bilinear"}
    sizes = {"image_size": image, "working_size": working, "channels": channels, "background": "white"}
    return Preprocessing.model_validate(values | sizes)


@given(st.integers(1, 50), st.integers(1, 50), SIDES, st.sampled_from(["bilinear", "bicubic"]))
def test_images_are_resized_to_height_and_width_as_pillow_does(
    height: int, width: int, size: tuple[int, int], method: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    filter = Image.Resampling[method.upper()]
    stretched = from_array(pixels, DecodeRules(working_size=size, interpolation=method))
    np.testing.assert_array_equal(stretched, np.asarray(image.resize(size[::-1], filter)))

    padded = from_array(pixels, DecodeRules(working_size=size, interpolation=method, resize="pad", background="lime"))
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    expected = np.full((*size, 3), [0, 255, 0], np.uint8)
    expected[top : top + inner[0], left : left + inner[1]] = np.asarray(image.resize(inner[::-1], filter))
    np.testing.assert_array_equal(padded, expected)

    cropped = from_array(pixels, DecodeRules(working_size=size, interpolation=method, resize="crop"))
    assert cropped.shape == (*size, 3)


def test_a_crop_has_the_form_of_the_result() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
    cropped = from_array(pixels, DecodeRules(working_size=(20, 30), resize="crop"))
    expected = Image.fromarray(pixels).resize((30, 20), Image.Resampling.BILINEAR, box=(20, 0, 80, 40))
    np.testing.assert_array_equal(cropped, np.asarray(expected))


@settings(max_examples=20)
@given(SIDES, st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_the_exported_preprocessing_is_that_of_prediction(size: tuple[int, int], more: tuple[int, int]) -> None:
    working = size[0] + more[0], size[1] + more[1]
    settings = preprocessing(size, working)
    pixels = torch.randint(0, 256, (2, *working, 3), dtype=torch.uint8)
    inputs = ToInput(settings, torch.device("cpu"))(pixels)
    assert inputs.shape == (2, 3, *size)
    torch.testing.assert_close(FromPixels(torch.nn.Identity(), settings)(pixels), inputs, atol=1e-4, rtol=0)


def test_a_rotation_of_a_rectangle_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(1, 1, 5, 7) * 255, (30, 60), mode="bicubic")
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.ones(*size))  # the largest angle
    turned = crop_and_rotate(smooth, (30, 60), AugmentConfig(rotation=20), torch.Generator())
    expected = F.rotate(smooth, 20, interpolation=F.InterpolationMode.BILINEAR)
    torch.testing.assert_close(turned[:, :, 10:20, 20:40], expected[:, :, 10:20, 20:40], atol=0.05, rtol=0)


def test_a_size_is_a_side_or_height_and_width() -> None:
    for value, kept in ((64, 64), ("64", 64), ([64, 64], 64), ("[48, 64]", (48, 64)), ((48, 64), (48, 64))):
        assert DataConfig.model_validate({"image_size": value}).image_size == kept
    assert json.loads(DataConfig(image_size=(48, 64)).model_dump_json())["image_size"] == [48, 64]
    assert json.loads(DataConfig(image_size=(64, 64)).model_dump_json())["image_size"] == 64
    for wrong in (3, "large", [64], [64, 64, 3], [64, 2], 64.5, True, 9999):
        with pytest.raises(
            ValueError, match=r"must be a whole number from 4 to 2048, the side of a square, or '\[height, width\]'"
        ):
            DataConfig.model_validate({"image_size": wrong})
    with pytest.raises(ValueError, match=r"data\.working_size \[50, 60\] is smaller than data\.image_size \[48, 64\]"):
        DataConfig(image_size=(48, 64), working_size=(50, 60))
    assert covers((48, 64), 48)
    assert not covers(48, (48, 64))
    assert (size_of(3, 4), size_of(3, 3), hw(3), size_text((3, 4))) == ((3, 4), 3, (3, 3), "3 x 4")


def test_maps_have_the_form_of_the_images() -> None:
    assert _alike((7, 7), (224, 224))
    assert _alike((4, 6), (64, 100))
    assert not _alike((7, 768), (224, 224))
    assert not _alike((6, 96), (64, 100))


def test_rectangles_of_five_channels_from_files_to_an_exported_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    draw = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "data" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{number}.npy", draw.integers(0, 256, (10, 24, 5), dtype=np.uint8))
    run = convsmith.train(
        {"source": str(tmp_path / "data"), "image_size": [8, 20], "cache": str(tmp_path / "cache")},
        "simple-cnn",
        epochs=1,
        train={"layout": "contiguous", "threads": 1},
        augment={"rotation": 10, "random_resized_crop": 0.6, "shift": 0.1, "trivial": True, "cutmix": 1.0},
        track={"wandb": "off"},
        runs_dir=tmp_path,
        name="run",
        show=False,
    )
    assert run.predictor.card.preprocessing.prepared_shape == (10, 23, 5)
    with open(tmp_path / "run/predictions-val.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    again = run.predict([tmp_path / "data" / row["id"] for row in rows])
    for row, prediction in zip(rows, again, strict=True):
        assert {name: float(row[f"p_{name}"]) for name in "abc"} == pytest.approx(prediction.probabilities, abs=1e-6)
    exported = run.export("onnx", tmp_path / "model.onnx")
    assert exported.takes.startswith("uint8 [N, 10, 23, 5], 5 channels: the upright image as 10 x 23 pixels")
    assert exported.difference < 1e-5


def test_what_pictures_show_is_said_where_it_is_not_all() -> None:
    assert [seen_channels(channels) for channels in (1, 2, 3, 7)] == [
        "",
        "Pictures show the first of 2 channels.",
        "",
        "Pictures show the first three of 7 channels.",
    ]
