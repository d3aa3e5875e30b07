"""Images of more than 8 bits a sample: `data.range`, from the file to the prediction."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convsmith
from convsmith.cli import main
from convsmith.config import compose, validate
from convsmith.data.audit import check_data, summary_lines
from convsmith.data.config import DataConfig, DecodeRules, Preprocessing
from convsmith.data.dataset import open_dataset, unseal_test
from convsmith.data.decode import DecodeError, decode
from convsmith.data.depth import range_note
from convsmith.data.preprocess import prepare
from convsmith.errors import UserError
from convsmith.training import setup


def tiff(samples: np.ndarray) -> bytes:
    """An uncompressed TIFF 6.0 of one strip, [H, W] or [H, W, 3], in the byte order of the samples."""
    order = ">" if samples.dtype.byteorder == ">" else "<"
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    bits, form = 8 * samples.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    tags = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, channels, bits),
        259: (3, 1, 1),
        262: (3, 1, 1 if channels == 1 else 2),
        273: (4, 1, 256),
        277: (3, 1, channels),
        278: (4, 1, height),
        279: (4, 1, samples.nbytes),
        339: (3, channels, form),
    }
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    beyond = 0
    for tag, (kind, count, value) in tags.items():
        if count > 1:  # three shorts, which lie at 200 and at 208
            field = struct.pack(order + "I", 200 + beyond)
            beyond += 8
        else:
            field = struct.pack(order + ("I" if kind == 4 else "Hxx"), value)
        head += struct.pack(order + "HHI", tag, kind, count) + field
    head = head.ljust(200, b"\0")
    if channels > 1:
        head += struct.pack(order + "HHHxxHHHxx", *[bits] * 3, *[form] * 3)
    return head.ljust(256, b"\0") + samples.tobytes()


def scans(count: int, dtype: str = "uint16", low: int = 980, high: int = 1101) -> list[np.ndarray]:
    """As computed tomography has them: all within a small part of the range, each of them different."""
    rng = np.random.default_rng(0)
    return [rng.integers(low, high, (12, 12)).astype(dtype) for _ in range(count)]


def plant(root: Path, images: list[np.ndarray]) -> Path:
    for number, samples in enumerate(images):
        folder = root / f"{'ab'[number % 2]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.tif").write_bytes(tiff(samples))
    return root


#: by NumPy's names of byte order and type; Pillow reads no big-endian file of unsigned 32 bits
TYPES = ["<u2", ">u2", "<i2", ">i2", "<i4", ">i4", "<u4", "<f4", ">f4"]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_range_scales_samples_of_every_type_and_clips_them(dtype: str) -> None:
    low, high = {"<u4": (100, 3_000_000_000), "<u2": (100, 1100), ">u2": (100, 1100)}.get(dtype, (-1000, 3000))
    samples = np.linspace(low - 100, high + 100, 144).reshape(12, 12).astype(dtype)
    expected = np.rint(np.clip((samples.astype(np.float64) - low) / (high - low), 0, 1) * 255)
    found = decode(tiff(samples), DecodeRules(range=(low, high), channels=1))[:, :, 0]
    np.testing.assert_array_equal(found, expected)


def test_images_of_8_bits_are_untouched() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (9, 9), np.uint8)
    for image in (Image.fromarray(gray), Image.fromarray(np.dstack([gray] * 3))):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        for rules in (DecodeRules(), DecodeRules(range=(3, 9))):
            np.testing.assert_array_equal(decode(buffer.getvalue(), rules)[:, :, 0], gray)


def test_what_lies_outside_the_full_range_is_refused_with_advice() -> None:
    for samples in (scans(1, "int16", -1000, 3000)[0], scans(1, "float32", -1, 9)[0]):
        with pytest.raises(DecodeError, match=r"set --data\.range to auto, or to the \[low, high\]"):
            decode(tiff(samples), DecodeRules())
    with pytest.raises(DecodeError, match="16-bit colour"):
        decode(tiff(np.zeros((9, 9, 3), np.uint16)), DecodeRules(range=(0, 9)))
    with pytest.raises(DecodeError, match="not a finite number"):
        decode(tiff(np.full((9, 9), np.nan, np.float32)), DecodeRules(range=(0, 9)))


@pytest.mark.parametrize("value", ["[5, 5]", "[9, 3]", "[1]", "[1, 2, 3]", "half", "['a', 'b']", "[true, false]"])
def test_a_wrong_range_is_one_line(value: str) -> None:
    message = r"data\.range: must be full, auto or '\[low, high\]' with low below high"
    with pytest.raises(UserError, match=message) as caught:
        compose("baseline", None, {"data.range": value})
    assert "\n" not in str(caught.value)


def test_a_range_comes_from_a_flag_a_file_and_a_resolved_config() -> None:
    typed = compose("baseline", None, {"data.range": "[-1024, 3071.5]"})
    assert typed.data.range == (-1024, 3071.5)
    assert validate(typed.model_dump(mode="json")) == typed
    assert compose("baseline", None, {"data.range": "auto"}).data.range == "auto"


def test_auto_is_what_the_train_images_use(tmp_path: Path) -> None:
    images = scans(40)
    plain = open_dataset(DataConfig(source=str(plant(tmp_path / "scans", images))))
    sealed = [int(Path(name).stem) for name in (*plain.val.ids, *unseal_test(plain).ids)]
    images[sealed[0]][0, 0], images[sealed[-1]][0, 0] = 3, 60_000  # which auto must not see
    dataset = open_dataset(DataConfig(source=str(plant(tmp_path / "other", images)), range="auto"))
    assert dataset.train.ids == plain.train.ids
    train = np.stack([images[int(Path(name).stem)] for name in dataset.train.ids])
    assert dataset.config.range == (train.min(), train.max())
    assert dataset.preprocessing().range == dataset.config.range
    shares = (train.astype(np.float64) - train.min()) / (train.max() - train.min())
    found = dataset.train.gather(slice(None))[:, :, :, 0]
    np.testing.assert_array_equal(found, np.rint(shares * 255))
    assert not dataset.notes
    assert open_dataset(dataset.config).hash == dataset.hash != plain.hash
    assert len(np.unique(plain.train.gather(slice(None)))) <= 2, "full leaves next to nothing of them"


def test_auto_is_full_where_no_image_is_deep(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 9, 9), np.uint8)
    dataset = open_dataset(DataConfig(source=str(plant(tmp_path, list(pixels))), range="auto"))
    assert dataset.config.range == "full"


def test_a_range_that_is_hardly_used_is_noted(tmp_path: Path) -> None:
    (note,) = open_dataset(DataConfig(source=str(plant(tmp_path / "narrow", scans(40))))).notes
    assert "980 to 1,100, which is 0.2% of the range from 0 to 65,535" in note
    assert "--data.range auto" in note
    wide = str(plant(tmp_path / "wide", scans(40, low=0, high=9_000)))
    assert not open_dataset(DataConfig(source=wide)).notes
    assert "of the range from 0 to 1e+06" in open_dataset(DataConfig(source=wide, range=(0, 1e6))).notes[0]


@pytest.mark.parametrize("limits", [(0.0, 1e-320), (-1e308, 1e308), (5000.0, 6000.0)])
def test_a_range_in_which_no_sample_lies_is_noted_too(limits: tuple[float, float]) -> None:
    note = range_note(np.array([[980.0, 1100.0, 65535.0]]), limits)
    assert note is not None
    assert "0.0% of the range" in note
    assert "about 1 gray levels" in note


def test_auto_is_not_recommended_for_images_that_are_all_the_same() -> None:
    note = range_note(np.array([[1000.0, 1000.0, 65535.0]]), "full")
    assert note is not None
    assert note.endswith("all samples are the same")


def test_data_check_proposes_to_train_with_the_range_that_was_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = plant(tmp_path / "scans", scans(8, "int16", -1000, 1000))
    assert main(["data", "check", str(root), "--range", "[-1000, 2000]"]) == 0
    assert f"convsmith train --data {root} --data.range '[-1000, 2000]'" in capsys.readouterr().out


def test_a_training_that_needs_a_range_says_so(tmp_path: Path) -> None:
    root = plant(tmp_path / "scans", scans(8, "int16", -1000, 1000))
    with pytest.raises(
        UserError, match=r"a/000\.tif: .* samples from .* set --data\.range to auto, or .*; convsmith data check"
    ):
        open_dataset(DataConfig(source=str(root), cache=str(tmp_path / "cache")))


def test_duplicates_are_compared_at_full_depth(tmp_path: Path) -> None:
    images = scans(30)
    images[7] = images[4]
    audit = check_data(DataConfig(source=str(plant(tmp_path, images))))
    assert [group.ids for group in audit.duplicates] == [("a/004.tif", "b/007.tif")]
    assert audit.verdicts == {"ok": 29, "duplicate": 1}
    assert not audit.near_duplicates
    assert any(line.startswith("note: the samples run from 980 to 1,100") for line in summary_lines(audit))
    json.dumps(audit.to_json())


def test_signed_images_are_checked_and_trained_on_with_a_range(tmp_path: Path) -> None:
    root = plant(tmp_path / "scans", scans(60, "int16", -1000, 400))
    assert check_data(DataConfig(source=str(root))).verdicts == {"unsupported": 60}
    assert check_data(DataConfig(source=str(root), range="auto")).verdicts == {"ok": 60}
    with pytest.raises(UserError, match="60 of 60 images"):
        open_dataset(DataConfig(source=str(root)))
    run = convsmith.train(
        data={"source": str(root), "range": "auto"},
        model="simple-cnn",
        epochs=1,
        runs_dir=tmp_path / "runs",
        train={"threads": 1, "layout": "contiguous"},
        track={"wandb": "off"},
    )
    card = json.loads((run.files.model / "model.json").read_text())
    assert card["preprocessing"]["range"] == [-1000, 399]
    sample = root / "a" / "000.tif"
    pixels = run.predictor.pixels(sample).array[0, :, :, 0]
    np.testing.assert_array_equal(pixels, np.rint((scans(1, "int16", -1000, 400)[0] + 1000.0) / 1399 * 255))
    assert run.predict(sample)[0].label in ("a", "b")
    flags = {"data.source": str(root), "transfer.weights": str(run.directory), "train.threads": "1"}
    again = setup.prepare(compose(None, None, flags))
    assert again.config.data.range == (-1000, 399), "what the weights were trained on"


def test_a_model_that_was_saved_before_has_the_full_range() -> None:
    old = {"image_size": 8, "working_size": 8, "channels": 1, "resize": "stretch", "interpolation": "bilinear"}
    rules = Preprocessing.model_validate(old | {"background": "white", "mean": [0.5], "std": [0.5]})
    assert rules.range == "full"
    pixels = prepare(tiff(np.full((8, 8), 65535, np.uint16)), rules).array
    assert (pixels == 255).all()
