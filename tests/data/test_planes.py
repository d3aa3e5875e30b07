"""Images of any number of channels: .npy, TIFF beyond Pillow, arrays; what is said of pages and colour profiles."""

from __future__ import annotations

import io
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from convsmith.contracts import gray_or_rgb
from convsmith.data import limits
from convsmith.data.cache import open_images
from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.decode import DecodeError, decode, decode_deep, from_array, read_header
from convsmith.data.native import native_shape
from convsmith.data.remarks import is_other_profile, sentences
from convsmith.data.sources import open_source
from data.hostile_images import array as npy

TYPES = ("uint8", "uint16", "int16", "float32", "float64")


def tiff(array: np.ndarray, **options: object) -> bytes:
    tifffile = pytest.importorskip("tifffile", reason="needs the extra tiff")
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, photometric="minisblack", **options)
    return stream.getvalue()


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def kind(data: bytes, rules: DecodeRules) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, rules)
    return caught.value.kind


@given(channels=st.integers(1, 16), kind=st.sampled_from(TYPES), height=st.integers(1, 9), width=st.integers(1, 9))
def test_an_array_has_its_own_channels_in_the_given_range(channels: int, kind: str, height: int, width: int) -> None:
    low, high = (0, 255) if kind == "uint8" else (-50, 400)
    array = np.random.default_rng(0).uniform(max(low, 0), high, (height, width, channels)).astype(kind)
    rules = DecodeRules(channels=channels, range=(low, high))
    expected = array if kind == "uint8" else np.rint((array.astype(np.float64) - low) / (high - low) * 255)
    assert read_header(npy(array)) == ("NPY", width, height, channels)
    np.testing.assert_array_equal(decode(npy(array), rules), expected)


def test_each_channel_is_resized_as_pillow_resizes_it() -> None:
    array = values(20, 30, 5)
    pixels = decode(npy(array), DecodeRules(channels=5, working_size=8))
    for band in range(5):
        expected = Image.fromarray(np.ascontiguousarray(array[:, :, band])).resize((8, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(pixels[:, :, band], np.asarray(expected))
    np.testing.assert_array_equal(from_array(array, DecodeRules(channels=5, working_size=8)), pixels)


def test_gray_and_colour_arrays_are_like_any_other_image() -> None:
    colour, gray = values(6, 7, 3), values(6, 7)
    np.testing.assert_array_equal(decode(npy(colour), DecodeRules()), colour)
    expected = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(decode(npy(colour), DecodeRules(channels=1))[:, :, 0], expected)
    np.testing.assert_array_equal(decode(npy(gray), DecodeRules()), np.repeat(gray[:, :, None], 3, axis=2))
    deep = gray.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(npy(deep), DecodeRules(channels=1))[:, :, 0], gray)
    assert decode_deep(npy(deep), DecodeRules()).depth.white == 65535


def test_alpha_is_a_channel_where_four_are_asked_for() -> None:
    rgba = values(5, 6, 4)
    stream = io.BytesIO()
    Image.fromarray(rgba).save(stream, "PNG")
    np.testing.assert_array_equal(decode(stream.getvalue(), DecodeRules(channels=4)), rgba)
    np.testing.assert_array_equal(from_array(rgba, DecodeRules(channels=4)), rgba)
    assert read_header(stream.getvalue()).channels == 3
    assert read_header(npy(rgba)).channels == 4


def test_another_number_of_channels_is_named() -> None:
    with pytest.raises(DecodeError, match=r"the image has 5 channels, but data.channels is 3: set it to 5"):
        decode(npy(values(4, 4, 5)), DecodeRules())
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    with pytest.raises(DecodeError, match=r"the image has 3 channels, but data.channels is 5"):
        decode(stream.getvalue(), DecodeRules(channels=5))


@pytest.mark.parametrize("order", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_multispectral_tiff(order: str, compression: str | None) -> None:
    array = values(10, 12, 13).astype(np.int16) - 20
    stored = np.moveaxis(array, 2, 0) if order == "separate" else array
    data = tiff(stored, planarconfig=order, compression=compression)
    assert read_header(data) == ("TIFF", 12, 10, 13)
    expected = np.rint((array + 20.0) / 255 * 255)
    np.testing.assert_array_equal(decode(data, DecodeRules(channels=13, range=(-20, 235))), expected)
    with pytest.raises(DecodeError, match=r"samples from -20 to 235 lie outside 0\.\.65535: set --data.range to auto"):
        decode(data, DecodeRules(channels=13))


def test_a_tiff_beyond_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiff(values(4, 4, 6).astype(np.float32) / 255, planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DecodeError, match=r"pip install 'convsmith\[tiff\]'") as caught:
        decode(data, DecodeRules(channels=6))
    assert caught.value.kind == "unsupported"


def test_hostile_arrays_are_refused_by_their_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    head = npy(np.zeros((1, 1), np.uint8))
    huge = head.replace(b"(1, 1), }      ", b"(99999, 99999),}")[: len(head) - 1]
    assert kind(huge, DecodeRules()) == "bomb"
    assert kind(npy(values(40, 40))[:900], DecodeRules()) == "truncated"
    assert kind(npy(np.zeros((3, 20, 20), np.uint8)), DecodeRules()) == "unsupported"
    assert kind(npy(np.zeros((0, 4), np.uint8)), DecodeRules()) == "corrupt"
    assert kind(npy(np.array([[None]])), DecodeRules()) == "unsupported"  # which NumPy would unpickle
    assert kind(b"\x93NUMPY" + bytes(99), DecodeRules()) == "corrupt"
    monkeypatch.setattr(limits, "MAX_SAMPLES", 100)
    assert kind(npy(values(5, 5, 5)), DecodeRules(channels=5)) == "bomb"


def test_a_strip_that_holds_more_than_its_pixels_is_a_bomb() -> None:
    data = tiff(np.zeros((64, 64, 6), np.uint8), planarconfig="contig", compression="zlib", rowsperstrip=64)
    strip = zlib.compress(bytes(64 * 64 * 6))
    assert strip in data
    swollen = zlib.compress(bytes(10**6), 9)
    table = data.replace(len(strip).to_bytes(4, "little"), len(swollen).to_bytes(4, "little"))
    assert kind(table.replace(strip, swollen), DecodeRules(channels=6)) == "bomb"


def test_the_source_has_the_channels_of_its_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            np.save(tmp_path / "data" / name / f"{number}.npy", values(8, 6, 7))
    source = open_source(DataConfig(source=str(tmp_path / "data")))
    assert native_shape(source, tmp_path) == ((8, 6), 7)
    assert open_images(source, DecodeRules(working_size=8, channels=7), tmp_path).pixels.shape == (4, 8, 8, 7)


def test_pages_and_profiles_are_said_once(tmp_path: Path) -> None:
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "data/b").mkdir(parents=True)
    one, two = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    one.save(tmp_path / "data/a/pages.tif", save_all=True, append_images=[two, two])
    one.save(tmp_path / "data/a/page.tif")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    at = srgb.index(b"rXYZ")
    start = int.from_bytes(srgb[at + 4 : at + 8], "big")
    other = srgb[: start + 8] + (40_000).to_bytes(4, "big") + srgb[start + 12 :]
    two.save(tmp_path / "data/b/same.png", icc_profile=srgb)
    two.save(tmp_path / "data/b/other.png", icc_profile=other)
    source = open_source(DataConfig(source=str(tmp_path / "data")))
    for _ in range(2):  # built, and read back
        images = open_images(source, DecodeRules(working_size=8), tmp_path)
        assert sentences(images.remarks) == (
            "of 1 TIFF files with several pages, the first page alone is used",
            "1 images have a colour profile other than sRGB, such as Display P3 or Adobe RGB, which is not applied: "
            "convert them where their exact colours matter",
        )
    for junk in (b"", b"RGB " * 99, other[:150], None):
        assert not is_other_profile(junk)


def test_pictures_show_the_first_three_channels_or_gray() -> None:
    pixels = values(4, 5, 7)
    np.testing.assert_array_equal(gray_or_rgb(pixels), pixels[:, :, :3])
    np.testing.assert_array_equal(gray_or_rgb(pixels[:, :, :2]), pixels[:, :, 0])
    np.testing.assert_array_equal(gray_or_rgb(pixels[:, :, :1]), pixels[:, :, 0])
