"""An upright, opaque image to a square of the working size. Knows no files."""

from __future__ import annotations

import numpy as np
from PIL import Image

from convsmith.data.config import DecodeRules
from convsmith.data.raster import Pixels, Raster, background_rgb

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def fit(raster: Raster, rules: DecodeRules) -> Pixels:
    """The image with the channels and the size of the rules: uint8 [H, W, C]."""
    image = raster.whole()
    if rules.channels == 1:
        image = image.convert("L")
    if rules.working_size is not None:
        image = _squared(image, rules.working_size, rules)
    pixels: Pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], rules.channels, axis=2)
    return np.ascontiguousarray(pixels)


def _squared(image: Image.Image, size: int, rules: DecodeRules) -> Image.Image:
    """`stretch` keeps all pixels but not the aspect ratio; `pad` keeps both and adds bars in `background`;
    `crop` takes the centre square, whose side is the fraction `crop` of the shorter side. Downscaling is antialiased
    (Pillow's convolution resampling).
    """
    width, height = image.size
    if (width, height) == (size, size) and rules.crop == 1:
        return image
    method = _FILTERS[rules.interpolation]
    if rules.resize == "stretch":
        return image.resize((size, size), method)
    if rules.resize == "crop":
        side = max(1, round(rules.crop * min(width, height)))
        left, top = (width - side) // 2, (height - side) // 2
        return image.resize((size, size), method, box=(left, top, left + side, top + side))
    scale = size / max(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new("RGB", (size, size), background_rgb(rules.background)).convert(image.mode)
    canvas.paste(image.resize(inner, method), ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return canvas
