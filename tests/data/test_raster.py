from __future__ import annotations

import io
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from convsmith.data import raster
from convsmith.data.config import DecodeRules
from convsmith.data.decode import decode, from_array
from convsmith.data.raster import background_rgb, composite

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
DEEP = ("I;16", "I", "F")
MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", *DEEP)


def whole(data: bytes, rules: DecodeRules) -> np.ndarray:
    """The slow twin of `decode`: each step makes a copy of the whole image."""
    with Image.open(io.BytesIO(data)) as file:
        file.load()
        image = ImageOps.exif_transpose(file)
    if image.mode in DEEP:
        samples = np.asarray(image).astype(np.float64)
        low, high = (0, 1 if image.mode == "F" else 65535) if rules.range == "full" else rules.range
        pixels = np.rint(255 * ((samples - low) / (high - low)).clip(0, 1)).astype(np.uint8)
    elif image.mode in ("1", "L"):
        pixels = np.asarray(image.convert("L"))
    else:
        rgba = np.asarray(image.convert("RGBA")).astype(np.int64)
        front, alpha = rgba[:, :, :3], rgba[:, :, 3:]
        pixels = ((front * alpha + np.array(background_rgb(rules.background)) * (255 - alpha) + 127) // 255).astype(
            "u1"
        )
    image = Image.fromarray(pixels)
    if rules.channels == 1:
        image = image.convert("L")
    if size := rules.working_size:
        image = squared(image, size, rules)
    pixels = np.asarray(image)
    return np.repeat(pixels[:, :, None], rules.channels, axis=2) if pixels.ndim == 2 else pixels


def squared(image: Image.Image, size: int, rules: DecodeRules) -> Image.Image:
    width, height = image.size
    method = FILTERS[rules.interpolation]
    if rules.resize == "pad":
        scale = size / max(width, height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        canvas = Image.new("RGB", (size, size), background_rgb(rules.background)).convert(image.mode)
        canvas.paste(image.resize(inner, method), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return canvas
    if rules.resize == "stretch":
        return image.resize((size, size), method)
    side = max(1, round(rules.crop * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((size, size), method, box=(left, top, left + side, top + side))


def a_tiff(mode: str, width: int, height: int, orientation: int) -> bytes:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "F":
        image = Image.fromarray(values[:, :, 0].astype(np.float32) / 255)
    elif mode in DEEP:
        image = Image.fromarray(values[:, :, 0].astype(np.int32 if mode == "I" else np.uint16) * 257)
    elif mode == "P":
        image = Image.fromarray(values[:, :, :3]).quantize(16)
    else:
        image = Image.fromarray(values, "RGBA" if mode != "CMYK" else mode)
        image = image.convert(mode) if image.mode != mode else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, "PNG" if mode in ("LA", "RGBA", "P", "I;16") else "TIFF", exif=exif)
    return stream.getvalue()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(MODES),
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    orientation=st.integers(1, 8),
    strip=st.integers(1, 700),
    rules=st.builds(
        DecodeRules,
        working_size=st.none() | st.integers(4, 40),
        channels=st.sampled_from([1, 3]),
        resize=st.sampled_from(["stretch", "pad", "crop"]),
        crop=st.sampled_from([1.0, 0.8]),
        interpolation=st.sampled_from(["bilinear", "bicubic"]),
        background=st.sampled_from(["white", "teal"]),
        range=st.sampled_from(["full", (0.1, 40_000.0)]),
    ),
)
def test_an_image_in_strips_is_the_image_as_a_whole_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    width: int,
    height: int,
    orientation: int,
    strip: int,
    rules: DecodeRules,
) -> None:
    monkeypatch.setattr(raster, "STRIP", strip)
    data = a_tiff(mode, width, height, orientation)
    np.testing.assert_array_equal(decode(data, rules), whole(data, rules))


def test_compositing_is_exact_for_every_value_alpha_and_background() -> None:
    front, alpha = np.array(list(product(range(256), range(256))), dtype=np.int64).T
    for level in range(256):
        pixels = composite(front.astype(np.uint8)[None], alpha.astype(np.uint8)[None], f"#{level:02x}{level:02x}00")
        np.testing.assert_array_equal(pixels[0, :, 0], (front * alpha + level * (255 - alpha) + 127) // 255)


@pytest.mark.parametrize("form", ["a strip", "some strips"])
def test_arrays_take_the_same_way(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "STRIP", 2**18 if form == "a strip" else 100)
    rgba = np.random.default_rng(0).integers(0, 256, (31, 17, 4), dtype=np.uint8)
    rules: dict[str, Any] = {"working_size": 12, "background": "navy"}
    stream = io.BytesIO()
    Image.fromarray(rgba).save(stream, "PNG")
    np.testing.assert_array_equal(
        from_array(rgba, DecodeRules(**rules)), decode(stream.getvalue(), DecodeRules(**rules))
    )
