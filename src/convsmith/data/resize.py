"""An upright, opaque image to the working size. Knows no files."""

from __future__ import annotations

import numpy as np
from PIL import Image

from convsmith.contracts import hw
from convsmith.data.config import DecodeRules
from convsmith.data.planes import Planes
from convsmith.data.raster import Pixels, Raster, background_rgb

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def fit(raster: Raster | Planes, rules: DecodeRules) -> Pixels:
    """The image with the channels and the size of the rules: uint8 [H, W, C]."""
    raster.refuse_other(rules.channels)
    if rules.channels not in (1, 3):
        bands = [_sized(band, rules) for band in raster.bands()]
        return np.stack([np.asarray(band) for band in bands], axis=2)
    image = raster.whole()
    if rules.channels == 1:
        image = image.convert("L")
    pixels: Pixels = np.asarray(_sized(image, rules))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], rules.channels, axis=2)
    return np.ascontiguousarray(pixels)


def _sized(image: Image.Image, rules: DecodeRules) -> Image.Image:
    """`stretch` keeps all pixels but not the aspect ratio; `pad` keeps both and adds bars in `background`;
    `crop` takes the middle with the aspect ratio of the result, as large as fits, or the fraction `crop` of its sides.
    Downscaling is antialiased (Pillow's convolution resampling).
    """
    if rules.working_size is None:
        return image
    (height, width), (across, down) = hw(rules.working_size), image.size
    if (across, down) == (width, height) and rules.crop == 1:
        return image
    method = _FILTERS[rules.interpolation]
    if rules.resize == "stretch":
        return image.resize((width, height), method)
    if rules.resize == "crop":
        is_high = across * height <= down * width
        fitted = (across, across * height / width) if is_high else (down * width / height, down)
        inner = max(1, round(rules.crop * fitted[0])), max(1, round(rules.crop * fitted[1]))
        left, top = (across - inner[0]) // 2, (down - inner[1]) // 2
        return image.resize((width, height), method, box=(left, top, left + inner[0], top + inner[1]))
    scale = min(width / across, height / down)
    inner = max(1, round(across * scale)), max(1, round(down * scale))
    canvas = Image.new("RGB", (width, height), background_rgb(rules.background)).convert(image.mode)
    canvas.paste(image.resize(inner, method), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas
