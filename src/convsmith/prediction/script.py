"""predict_onnx.py, the program beside an exported ONNX file that needs nothing of ours. The template has the rules of
`data.raster`, `data.planes` and `data.resize`; tests/prediction/test_script.py holds both to the same pixels."""

from __future__ import annotations

from pathlib import Path

from convsmith.contracts import hw
from convsmith.data.decode import background_rgb
from convsmith.prediction.model_file import ModelCard

NAME = "predict_onnx.py"
TEMPLATE = Path(__file__).with_name("templates") / f"{NAME}.txt"

_PIXELS = '''
def model_input(pixels):
    """The model takes pixels as they are: the rest of the preprocessing is in the file."""
    return pixels

'''
_NORMALISED = '''
def model_input(pixels):
    """float32 [CHANNELS, SIZE[1], SIZE[0]]: resized once more if SIZE differs, then normalised by channel."""
    bands = [Image.fromarray(band.astype(np.float32)).resize(SIZE, FILTER) for band in np.moveaxis(pixels, 2, 0)]
    floats = np.stack([np.asarray(band) for band in bands]).clip(0, 255) / 255
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    return ((floats - mean) / std).astype(np.float32)

'''


def is_script(content: bytes) -> bool:
    """Whether the content of a file is that of such a program."""
    return content.startswith(TEMPLATE.read_bytes().partition(b"\n")[0])


def script(model: str, sha256: str, card: ModelCard, takes_pixels: bool) -> str:
    """The program for the file called `model` with this checksum in its metadata, whose input is pixels or floats."""
    rules = card.preprocessing
    height, width = hw(rules.working_size)
    lines = [
        f"MODEL = {model!r}",
        f"SHA256 = {sha256!r}  # of that file, in its metadata",
        f"INPUT = {'pixels' if takes_pixels else 'images'!r}  # its name in the model",
        f"CLASSES = {_wrapped(card.classes)}",
        f"CHANNELS = {rules.channels}" + {1: "  # gray", 3: "  # RGB"}.get(rules.channels, ""),
        f"WIDTH, HEIGHT = {width}, {height}  # in pixels",
        f"RESIZE = {rules.resize!r}  # stretch, pad or crop",
        f"CROP = {rules.crop!r}  # the part of the sides that crop keeps",
        f"FILTER = Image.Resampling.{rules.interpolation.upper()}",
        f"BACKGROUND = {background_rgb(rules.background)}  # behind transparent pixels, and of the bars of pad",
        f"RANGE = {None if rules.range == 'full' else rules.range!r}  # of samples of more than 8 bits, if not their "
        "type's",
    ]
    if not takes_pixels:
        down, across = hw(rules.image_size)
        lines += [f"SIZE = {across}, {down}", f"MEAN = {rules.mean!r}", f"STD = {rules.std!r}"]
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("{{input}}", _PIXELS if takes_pixels else _NORMALISED)
    return text.replace("{{constants}}", "\n".join(lines))


def _wrapped(names: tuple[str, ...]) -> str:
    """A list of names, one a line; with escapes instead of what is not plain ASCII."""
    return "[\n" + "".join(f"    {name!a},\n" for name in names) + "]"
