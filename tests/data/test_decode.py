from __future__ import annotations

import contextlib
import io
import json
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from convsmith.data import decode as module
from convsmith.data import plugins
from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.decode import DecodeError, decode, from_array, read_header
from convsmith.errors import UserError
from data.hostile_images import HEIC

NATIVE = DecodeRules()
SHARED = Path(__file__).resolve().parents[2].parent / "shared"
PNGS = sorted((SHARED / "data/pngsuite/png").glob("*.png"))


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: what Pillow cannot write (16-bit colour, tRNS in the file's own depth)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.skipif(not PNGS, reason="needs shared/data/pngsuite")
@pytest.mark.parametrize("background", [(255, 255, 255), (255, 0, 0), (10, 200, 77)])
def test_every_png_of_pngsuite_has_its_true_pixels(background: tuple[int, int, int]) -> None:
    rules = DecodeRules(background="#{:02x}{:02x}{:02x}".format(*background))
    whole = [path for path in PNGS if not path.name.startswith("x")]
    assert len(whole) == 161
    for path in whole:
        pixels = decode(path, rules)
        truth = np.array(json.loads((path.parents[1] / "json" / f"{path.stem}.json").read_text()), dtype=np.float64)
        wide = truth.max() > 255
        truth = truth.reshape(*pixels.shape[:2], 4) / (65535 if wide else 255)
        alpha = truth[:, :, 3:]
        expected = np.rint(255 * truth[:, :, :3] * alpha + np.array(background) * (1 - alpha))
        assert np.abs(pixels - expected).max() <= (1 if wide else 0), path.name


@pytest.mark.skipif(not PNGS, reason="needs shared/data/pngsuite")
def test_every_corrupt_png_of_pngsuite_is_refused() -> None:
    corrupt = [path for path in PNGS if path.name.startswith("x")]
    assert len(corrupt) == 14
    for path in corrupt:
        with pytest.raises(DecodeError) as caught:
            decode(path, NATIVE)
        assert caught.value.kind == "corrupt", path.name


def test_16_bit_gray_is_scaled_and_rounded_not_clipped() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decode(encode(Image.fromarray(values)), NATIVE)
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(values * (255 / 65535)).astype(np.uint8))
    tiff = decode(encode(Image.fromarray(values), "TIFF"), NATIVE)
    np.testing.assert_array_equal(tiff, pixels)


def test_16_bit_colour_with_a_transparent_colour() -> None:
    row = b"\0" + struct.pack(">6H", 65535, 65535, 65535, 30000, 20000, 10000)
    data = png(2, 1, 16, 2, row, (b"tRNS", struct.pack(">3H", 65535, 65535, 65535)))
    first, second = decode(data, DecodeRules(background="#010203"))[0]
    assert first.tolist() == [1, 2, 3]
    assert np.abs(second - np.array([30000, 20000, 10000]) / 257).max() <= 1


@pytest.mark.parametrize(("depth", "key", "row"), [(1, 1, 0b01000000), (2, 2, 0b00100000), (4, 9, 0b00001001)])
def test_a_transparent_gray_is_given_in_the_files_own_depth(depth: int, key: int, row: int) -> None:
    data = png(2, 1, depth, 0, bytes([0, row]), (b"tRNS", struct.pack(">H", key)))
    first, second = decode(data, DecodeRules(background="red"))[0].tolist()
    assert first == [0, 0, 0]
    assert second == [255, 0, 0]


def test_float_and_wide_integers_count_in_their_stated_range_and_no_other() -> None:
    floats = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert decode(encode(Image.fromarray(floats), "TIFF"), NATIVE)[0, :, 0].tolist() == [0, 128, 255]
    integers = np.array([[0, 32896, 65535]], dtype=np.int32)
    assert decode(encode(Image.fromarray(integers), "TIFF"), NATIVE)[0, :, 0].tolist() == [0, 128, 255]
    for wrong in (floats * 2, floats - 1, floats * np.nan, integers * 2, integers - 1):
        with pytest.raises(DecodeError, match=r"outside|not a finite number") as caught:
            decode(
                encode(Image.fromarray(wrong.astype(floats.dtype if wrong.dtype.kind == "f" else np.int32)), "TIFF"),
                NATIVE,
            )
        assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    blocks = np.kron(noise(2, 3, 3), np.ones((16, 16, 1), dtype=np.uint8))
    image = Image.fromarray(blocks)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, form, exif=exif)
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    pixels = decode(data, NATIVE)
    assert pixels.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    np.testing.assert_array_equal(pixels, expected)


def test_broken_exif_does_not_lose_the_picture() -> None:
    image = Image.fromarray(noise(8, 8, 3))
    data = encode(image, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(data, NATIVE), np.asarray(image))


@pytest.mark.parametrize("alpha", [0, 1, 127, 128, 254, 255])
def test_transparency_is_composited_on_the_background(alpha: int) -> None:
    rgba = np.dstack([noise(5, 7, 3), np.full((5, 7), alpha, dtype=np.uint8)])
    share = alpha / 255
    expected = np.rint(rgba[:, :, :3] * share + np.array([0, 128, 128]) * (1 - share))
    rules = DecodeRules(background="teal")
    np.testing.assert_array_equal(decode(encode(Image.fromarray(rgba)), rules), expected)
    np.testing.assert_array_equal(from_array(rgba, rules), expected)


def test_palette_gray_alpha_and_one_bit() -> None:
    palette = Image.fromarray(noise(9, 9, 3)).quantize(16)
    np.testing.assert_array_equal(decode(encode(palette), NATIVE), np.asarray(palette.convert("RGB")))
    gray_alpha = Image.fromarray(np.dstack([noise(4, 4), np.full((4, 4), 0, np.uint8)]), "LA")
    assert (decode(encode(gray_alpha), NATIVE) == 255).all()
    bits = Image.fromarray(noise(9, 9)).convert("1")
    np.testing.assert_array_equal(decode(encode(bits), DecodeRules(channels=1))[:, :, 0], np.asarray(bits) * 255)


def test_cmyk_and_ycck_become_rgb() -> None:
    smooth = Image.fromarray(np.kron(noise(2, 2, 3), np.ones((32, 32, 1), dtype=np.uint8)))
    for form in ("JPEG", "TIFF"):
        data = encode(smooth.convert("CMYK"), form, **({"quality": 95} if form == "JPEG" else {}))
        pixels = decode(data, NATIVE).astype(int)
        assert np.abs(pixels - np.asarray(smooth)).mean() < 4


def test_a_colour_mode_that_pillow_cannot_convert_is_unsupported() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(encode(Image.new("LAB", (4, 4)), "TIFF"), NATIVE)
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#0000ff")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (decode(data, NATIVE) == [255, 0, 0]).all()


def test_channels_are_what_was_asked_for() -> None:
    gray, colour = noise(6, 6), noise(6, 6, 3)
    assert decode(encode(Image.fromarray(gray)), NATIVE).tolist() == np.repeat(gray[:, :, None], 3, axis=2).tolist()
    one = decode(encode(Image.fromarray(colour)), DecodeRules(channels=1))
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert one.shape == (6, 6, 1)
    assert np.abs(one[:, :, 0] - luma).max() <= 1
    assert from_array(gray[:, :, None], NATIVE).shape == (6, 6, 3)


@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.integers(4, 40), gray=st.booleans())
def test_resizing_gives_squares_and_keeps_flat_colour(height: int, width: int, size: int, gray: bool) -> None:
    flat = np.full((height, width) if gray else (height, width, 3), 77, dtype=np.uint8)
    for resize in ("stretch", "pad", "crop"):
        for interpolation in ("bilinear", "bicubic"):
            policy = {"resize": resize, "interpolation": interpolation, "background": "#4d4d4d"}  # 0x4d is 77
            out = from_array(flat, DecodeRules(working_size=size, channels=1 if gray else 3, **policy))
            assert out.shape == (size, size, 1 if gray else 3)
            assert (out == 77).all()


def test_each_resize_policy_shows_what_it_says() -> None:
    wide = np.zeros((20, 40, 3), dtype=np.uint8)
    wide[:, :10], wide[:, 30:] = [255, 0, 0], [0, 0, 255]
    stretched = from_array(wide, DecodeRules(working_size=20))
    assert stretched[10, 1].tolist() == [255, 0, 0]
    assert stretched[10, -2].tolist() == [0, 0, 255]
    assert (from_array(wide, DecodeRules(working_size=20, resize="crop")) == 0).all()
    padded = from_array(wide, DecodeRules(working_size=20, resize="pad", background="lime"))
    assert (padded[:5] == [0, 255, 0]).all()
    assert (padded[15:] == [0, 255, 0]).all()
    np.testing.assert_array_equal(padded[5:15], np.asarray(Image.fromarray(wide).resize((20, 10), 2)))


def test_the_rules_of_a_config_and_of_its_preprocessing_are_the_same() -> None:
    config = DataConfig(working_size=40, channels=1, resize="pad", interpolation="bicubic", background="#123456")
    assert DecodeRules.of(config) == DecodeRules(
        working_size=40, channels=1, resize="pad", interpolation="bicubic", background="#123456"
    )


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_truncated_file_is_refused_wherever_it_ends(form: str) -> None:
    if form == "TIFF":  # what is left of its header may be that of a TIFF which only this reader could tell about
        pytest.importorskip("tifffile")
    data = encode(Image.fromarray(noise(32, 32, 3)), form)
    kinds = set()
    for end in range(1, len(data) * 9 // 10, 97):
        with pytest.raises(DecodeError) as caught:
            decode(data[:end], NATIVE)
        kinds.add(caught.value.kind)
    assert kinds <= {"truncated", "corrupt", "not-an-image"}
    if form in ("PNG", "JPEG"):
        assert caught.value.kind == "truncated"


@given(position=st.integers(8, 10_000), flip=st.integers(1, 255))
def test_no_flipped_byte_of_a_png_goes_unnoticed(position: int, flip: int) -> None:
    data = bytearray(encode(Image.fromarray(noise(16, 16, 3))))
    data[8 + position % (len(data) - 8)] ^= flip
    with pytest.raises(DecodeError):
        decode(bytes(data), NATIVE)


def test_a_png_without_its_end_marker_is_read_if_all_pixels_are_there() -> None:
    image = Image.fromarray(noise(32, 32, 3))
    whole = encode(image)
    end = whole.rindex(b"IEND")
    for cut in (whole[: end - 4], whole[: end - 1], whole[: end + 4], whole[: end + 6]):
        np.testing.assert_array_equal(decode(cut, NATIVE), np.asarray(image))
    # Two thirds of the pixels, in a file that ends with a whole chunk.
    rows = zlib.compress(b"".join(b"\0" + bytes(row) for row in noise(30, 30)))
    first, second = (png(30, 30, 8, 0, b"") for _ in range(2))
    start = first.index(b"IDAT") - 4
    part = rows[: 2 * len(rows) // 3]
    chunk = struct.pack(">I", len(part)) + b"IDAT" + part + struct.pack(">I", zlib.crc32(b"IDAT" + part))
    with pytest.raises(DecodeError) as caught:
        decode(second[:start] + chunk, NATIVE)
    assert caught.value.kind == "truncated"


def test_long_texts_of_a_png_do_not_keep_its_pixels_from_being_read(tmp_path: Path) -> None:
    row = b"".join(b"\0" + bytes(line) for line in noise(16, 16))
    plain = decode(png(16, 16, 8, 0, row), NATIVE)
    random = noise(2**21).tobytes()
    for kind, start in ((b"zTXt", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0"), (b"iCCP", b"x\0\0")):
        for text in (bytes(2**21), random):  # the second is read from the file in parts
            data = png(16, 16, 8, 0, row, (kind, start + zlib.compress(text)))
            (tmp_path / "long.png").write_bytes(data)
            np.testing.assert_array_equal(decode(data, NATIVE), plain)
            np.testing.assert_array_equal(decode(tmp_path / "long.png", NATIVE), plain)
            assert read_header(tmp_path / "long.png") == ("PNG", 16, 16, 1)


def test_avif_is_read_upright_with_its_transparency(tmp_path: Path) -> None:
    flat = Image.new("RGB", (24, 16), (200, 30, 40))
    Image.fromarray(noise(4, 6, 3)).resize((24, 16)).save(tmp_path / "a.avif", quality=95)
    with Image.open(tmp_path / "a.avif") as stored:
        np.testing.assert_array_equal(decode(tmp_path / "a.avif", NATIVE), np.asarray(stored.convert("RGB")))
    assert read_header(tmp_path / "a.avif") == ("AVIF", 24, 16, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(flat, "AVIF", exif=exif), NATIVE).shape == (24, 16, 3)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (decode(encode(clear, "AVIF", quality=100), NATIVE) == 255).all()


def test_heic_is_read_through_its_plug_in() -> None:
    pytest.importorskip("pi_heif", reason="needs the extra heic")
    pixels = decode(HEIC, NATIVE).astype(int)
    assert pixels.shape == (64, 48, 3)
    assert np.abs(pixels[:28] - [200, 30, 40]).max() < 20
    assert np.abs(pixels[36:] - [20, 180, 60]).max() < 20
    assert read_header(HEIC).format == "HEIF"


def test_heic_without_its_plug_in_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins._with_heif.cache_clear()
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(DecodeError, match=r"pip install 'convsmith\[heic\]'") as caught:
        decode(HEIC, NATIVE)
    assert caught.value.kind == "unsupported"


@given(junk=st.binary(max_size=300), form=st.sampled_from(["", "PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]))
def test_nothing_but_decode_errors_comes_out_of_junk(junk: bytes, form: str) -> None:
    start = encode(Image.fromarray(noise(8, 8, 3)), form)[:40] if form else b""
    for read in (lambda data: decode(data, NATIVE), read_header):
        try:
            assert read(start + junk) is not None
        except DecodeError as error:
            assert error.message  # noqa: PT017


def test_empty_missing_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture " * 10)
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, kind in (("empty", "empty"), ("text", "not-an-image"), ("script", "not-an-image"), ("no", "unreadable")):
        for read in (lambda path: decode(path, NATIVE), read_header):
            with pytest.raises(DecodeError) as caught:
                read(tmp_path / f"{name}.png")
            assert caught.value.kind == kind


def test_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for side in (12_000, 40_000):  # below and above the limit at which Pillow itself raises
        with pytest.raises(DecodeError) as caught:
            decode(png(side, side, 8, 0, b""), NATIVE)
        assert caught.value.kind == "bomb"
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    (tmp_path / "long.png").write_bytes(bytes(11))
    with pytest.raises(DecodeError, match="11 bytes"):
        decode(tmp_path / "long.png", NATIVE)


def test_pillows_warnings_stay_inside_and_the_filters_come_back_in_threads() -> None:
    # 100 megapixels: Pillow warns of a bomb, we do not mind; the pixel data is missing.
    data = png(10_000, 10_000, 1, 0, b"")
    before = list(warnings.filters)

    def kind(_: int) -> str:
        with pytest.raises(DecodeError) as caught:
            decode(data, NATIVE)
        return caught.value.kind

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(kind, range(8))) <= {"truncated", "corrupt"}
    assert warnings.filters == before


def test_headers_tell_format_size_and_channels(tmp_path: Path) -> None:
    Image.fromarray(noise(5, 9)).save(tmp_path / "gray.bmp")
    assert read_header(tmp_path / "gray.bmp") == ("BMP", 9, 5, 1)
    assert read_header(encode(Image.fromarray(noise(5, 9, 3)), "JPEG")) == ("JPEG", 9, 5, 3)


def test_photographs_decode_upright_at_the_working_size(ants_bees: Path) -> None:
    for path in sorted((ants_bees / "val" / "ants").iterdir())[:8]:
        with Image.open(path) as image:
            expected = np.asarray(
                ImageOps.exif_transpose(image).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
            )
        np.testing.assert_array_equal(decode(path, DecodeRules(working_size=64)), expected)


def test_the_users_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"data\.background 'whit' is not a colour"):
        module.background_rgb("whit")
    with pytest.raises(UserError, match=r"float64 \[4, 4\]"):
        from_array(np.zeros((4, 4)), NATIVE)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"up to 16 channels, not uint8 \[4, 4, 17\]"):
        from_array(np.zeros((4, 4, 17), dtype=np.uint8), NATIVE)


def test_libtiff_writes_nothing_past_python(capfd: pytest.CaptureFixture[str]) -> None:
    whole = encode(Image.fromarray(noise(40, 40)), "TIFF", compression="tiff_lzw")
    for at in range(8, len(whole), 5):
        with contextlib.suppress(DecodeError):
            decode(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :], NATIVE)
    assert capfd.readouterr().err == ""
