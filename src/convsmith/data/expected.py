"""What given weights expect of the images, compared with what was asked for and what the images are."""

from __future__ import annotations

from typing import Any

from convsmith.contracts import InputSpec
from convsmith.data.config import DataConfig

LARGEST_NATIVE = 96  # larger squares are photographs: by default the net sees a size of its own of them


def side(native: tuple[int, int] | None) -> int | None:
    """The side of images that are all small squares of one size, else None."""
    height, width = native or (0, 0)
    return height if height == width and 4 <= height <= LARGEST_NATIVE else None


def as_expected(config: DataConfig, spec: InputSpec | None, native: tuple[int, int] | None) -> DataConfig:
    """`config` with what nobody set filled in as the weights expect it; a key that was set wins.

    `native` is the (height, width) that all images share, if any. Small images are enlarged to `spec.smallest`
    at least: a net for photographs halves its maps so often that nothing would be left of 32 x 32 pixels.
    """
    if spec is None:
        return config
    given = {key for key in config.model_fields_set if getattr(config, key) is not None}
    own = side(native)
    size = spec.size if own is None or own >= spec.size else max(own, spec.smallest)
    wanted: dict[str, Any] = {"image_size": size, "channels": spec.channels, "interpolation": spec.interpolation}
    if not given & {"resize", "crop"}:
        wanted |= {"resize": spec.resize, "crop": spec.crop}
    if spec.background is not None:
        wanted["background"] = spec.background
    if spec.range is not None:
        wanted["range"] = spec.range
    channels = config.channels if "channels" in given else spec.channels
    if "mean" not in given:
        # Stems for another number of channels are summed, so their one channel is normalised by the means' mean.
        same = channels == spec.channels
        wanted["mean"] = spec.mean if same else (sum(spec.mean) / len(spec.mean),) * (channels or 1)
        wanted["std"] = spec.std if same else (sum(spec.std) / len(spec.std),) * (channels or 1)
    return DataConfig.model_validate(
        config.model_dump(exclude_unset=True) | {key: value for key, value in wanted.items() if key not in given}
    )


def differences(config: DataConfig, spec: InputSpec) -> list[str]:
    """In words, where the images that the net sees are not as its weights expect them."""
    assert config.image_size is not None, "resolve the config first"
    assert config.mean is not None, "resolve the config first"
    messages = []
    if config.image_size != spec.size:
        size = config.image_size
        messages.append(f"they expect {spec.size} x {spec.size} pixels and get {size} x {size}")
    if config.channels != spec.channels:
        messages.append(
            f"they expect {spec.channels} channels and get {config.channels}: the stem's weights are summed"
        )
    if (config.resize, config.crop) != (spec.resize, spec.crop):
        messages.append(f"they expect {fitting(spec.resize, spec.crop)} and get {fitting(config.resize, config.crop)}")
    if config.interpolation != spec.interpolation:
        messages.append(f"they expect {spec.interpolation} interpolation and get {config.interpolation}")
    if spec.range is not None and config.range != spec.range:
        messages.append(f"they expect samples of the range {shown(spec.range)} and get data.range {config.range}")
    if config.channels == spec.channels and (config.mean, config.std) != (spec.mean, spec.std):
        messages.append(
            f"they expect mean {shown(spec.mean)}, deviation {shown(spec.std)}, and get data.mean, data.std"
        )
    return messages


def fitting(resize: str, crop: float) -> str:
    """``crop to the centre 87.5%``, ``stretch``."""
    return f"crop to the centre {crop:.4g} of the square" if resize == "crop" and crop < 1 else resize


def shown(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
