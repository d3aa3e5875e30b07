"""Data settings that pretrained weights expect, and how the config differs from them. Reads no images."""

from __future__ import annotations

from typing import Any

from convsmith.contracts import InputSpec, hw, size_text
from convsmith.data.config import DataConfig
from convsmith.data.native import Native

LARGEST_NATIVE = 96  # larger squares count as photographs, whose size does not become the network's input size


def side(native: tuple[int, int] | None) -> int | None:
    """The side of the images if all of them are small squares of one size, else None."""
    height, width = native or (0, 0)
    return height if height == width and 4 <= height <= LARGEST_NATIVE else None


def as_expected(config: DataConfig, spec: InputSpec | None, native: Native | None) -> DataConfig:
    """`config` with the keys that were not set filled in as the weights expect them; keys that were set stay.

    `native` is what the images have of their own, where it is known: a number of channels that is neither gray nor RGB
    is kept, and the stem's weights are adapted to it. Small images are enlarged to at least
    `spec.smallest`, since a network for photographs halves its maps so often that nothing would remain of 32 x 32
    pixels.
    """
    if spec is None:
        return config
    given = {key for key in config.model_fields_set if getattr(config, key) is not None}
    own = side(native.size if native else None)
    channels = spec.channels if native is None or native.channels in (1, 3) else native.channels
    size = spec.size if own is None or own >= min(hw(spec.size)) else max(own, spec.smallest)
    if spec.is_size_alone:
        return config if "image_size" in given else config.model_copy(update={"image_size": size})
    wanted: dict[str, Any] = {"image_size": size, "channels": channels, "interpolation": spec.interpolation}
    if not given & {"resize", "crop"}:
        wanted |= {"resize": spec.resize, "crop": spec.crop}
    if spec.background is not None:
        wanted["background"] = spec.background
    if spec.range is not None:
        wanted["range"] = spec.range
    if "channels" in given:
        channels = config.channels or channels
    if "mean" not in given:
        # For another number of channels the stem's weights are summed, so each channel gets the mean of the statistics.
        same = channels == spec.channels
        wanted["mean"] = spec.mean if same else (sum(spec.mean) / len(spec.mean),) * channels
        wanted["std"] = spec.std if same else (sum(spec.std) / len(spec.std),) * channels
    return DataConfig.model_validate(
        config.model_dump(exclude_unset=True) | {key: value for key, value in wanted.items() if key not in given}
    )


def differences(config: DataConfig, spec: InputSpec) -> list[str]:
    """Sentences on how the network's input differs from what its weights expect."""
    assert config.image_size is not None, "resolve the config first"
    assert config.mean is not None, "resolve the config first"
    messages = []
    if config.image_size != spec.size:
        messages.append(f"they expect {size_text(spec.size)} pixels and get {size_text(config.image_size)}")
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
            f"they expect mean {shown(spec.mean)} and standard deviation {shown(spec.std)}, and get data.mean and "
            "data.std"
        )
    return messages


def fitting(resize: str, crop: float) -> str:
    """How images are made square, for example ``crop to the centre 0.875 of the square`` or ``stretch``."""
    return f"crop to the centre {crop:.4g} of the square" if resize == "crop" and crop < 1 else resize


def shown(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
