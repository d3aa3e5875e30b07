"""Which recipe a training follows where the user has named none: by the images, the network and the weights at hand.

The rules are the constants below, each with the measurement that it comes from; docs/guide.md states them. torch is
imported only where a network or its weights are needed, so that `--print-config` of a preset responds at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from convsmith.config import BASELINE, Layer, RunConfig, Settings, preset_layer
from convsmith.data.config import DataConfig
from convsmith.data.named import known_shape
from convsmith.data.sources import Source, cache_folder, open_source
from convsmith.events import Listener, Note, nobody
from convsmith.nets.config import refuse_unknown
from convsmith.studies.book import worth
from convsmith.transfer import lookup
from convsmith.transfer.config import AUTO_WEIGHTS, LIBRARY_WEIGHTS, NO_WEIGHTS, WORDS

if TYPE_CHECKING:
    from convsmith.training.own import Parts

#: Images with at most as many pixels as a square of this side are small. A small net trains on all 50,000 of CIFAR-10
#: in minutes (docs/results/baseline.json), where a pretrained one would need them enlarged.
SMALL_SIDE = 64
#: Gray images of which at least this share is background are drawings; others are photographs, for which pretrained
#: weights are worth 40 points in gray, too, as they are for few drawings (docs/results/recipes.json).
BLANK_SHARE = 0.5
#: Up to this many train images the head alone is trained: with 400 photographs finetuning is no better and takes eight
#: times as long (docs/results/transfer.json), with 2,500 images it is (transfer-250 in docs/evidence.md).
FEW_IMAGES = 1_000
LINEAR_PROBE, FINETUNE, FROM_SCRATCH = "linear-probe", "finetune", "from-scratch"
PRETRAINED = LINEAR_PROBE, FINETUNE
_OTHERWISE = f"others: --model NAME, --preset {BASELINE} (small, from random weights)"


@dataclass(frozen=True)
class Images:
    """What decides about the data: `kind` in words, whether they are gray, and whether pretrained weights are taken."""

    kind: str
    is_gray: bool
    suit_pretrained: bool
    train: int | None = None  # None if it is not known before a download

    @property
    def number(self) -> str:
        return "many train images" if self.train is None else f"about {self.train:,} train images"


def decide(settings: Settings, parts: Parts | None = None, listener: Listener = nobody) -> RunConfig:
    """The config of `settings`; where they leave the recipe open, with the one that data, network and weights choose.

    The listener gets a sentence on what was chosen and how to choose otherwise, and on random weights where there are
    pretrained ones. Raises UserError.
    """
    if parts is not None and parts.module is not None:
        return settings.config
    if (file := _weights_without_network(settings)) is not None:
        from convsmith.transfer.recognise import recognise

        network = recognise(file)
        settings = replace(settings, layers=({"model": {"name": network}}, *settings.layers))
        listener(Note(f"'{file.name}' holds weights of {network}, by the names and shapes of its tensors"))
    config = settings.config
    if settings.is_open:
        choice = _chosen(settings, parts.source if parts else None)
        config = Settings(None, (choice.network, *settings.layers)).over(choice.preset)
        listener(Note(f"recipe: {choice.preset}, {choice.why}"))
        if choice.lacks:
            listener(Note(choice.lacks, bears_on_result=True))
    elif settings.preset in PRETRAINED and "model" not in settings.layer and config.transfer.weights == LIBRARY_WEIGHTS:
        network = _at_hand(cache_folder(config.data)) or lookup.PREFERRED[0]
        config = Settings(None, ({"model": {"name": network}}, *settings.layers)).over(settings.preset)
        listener(Note(f"network: {network}; others: --model NAME"))
    if config.model.is_library and config.transfer.weights == NO_WEIGHTS:
        listener(Note(_random(config.model.name)))
    return config


def _weights_without_network(settings: Settings) -> Path | None:
    """The file that transfer.weights names, if neither the user nor a preset names the network that it belongs to."""
    layer = settings.layer
    weights = str(layer.get("transfer", {}).get("weights", AUTO_WEIGHTS))
    preset = {} if settings.preset is None else preset_layer(settings.preset)
    named = "model" in layer or "name" in preset.get("model", {})
    return Path(weights) if not named and weights not in WORDS and Path(weights).is_file() else None


@dataclass(frozen=True)
class _Choice:
    preset: str
    why: str  # and how to choose otherwise
    network: Layer  # the section of a network that is none of the preset's, or nothing
    lacks: str = ""  # what the images call for and this machine has not, in a sentence


def _chosen(settings: Settings, source: Source | None) -> _Choice:
    config, named = settings.config, settings.layer.get("model")
    weights = settings.layer.get("transfer", {}).get("weights", AUTO_WEIGHTS)
    if config.model.is_library:
        from convsmith.transfer.pretrained import has_weights

        network = config.model.name
        if weights == NO_WEIGHTS or (weights == AUTO_WEIGHTS and not has_weights(network, cache_folder(config.data))):
            return _Choice(FROM_SCRATCH, f"for {network} with random weights", {})
        images = images_of(config.data, source)
        return _Choice(_preset(images), f"for {network} and {images.number}; {_OTHERWISE}", {})
    refuse_unknown(config.model.name)  # before the data are opened
    if named or (weights not in WORDS and Path(weights).exists()):  # a network of ours, or that of a run
        return _Choice(BASELINE, f"for {config.model.name}; others: convsmith presets", {})
    images = images_of(config.data, source)
    if weights == NO_WEIGHTS or (weights == AUTO_WEIGHTS and not images.suit_pretrained):
        instead = f"others: --model {lookup.PREFERRED[0]}" + (
            "" if images.is_gray else f", with pretrained weights ({worth()})"
        )
        return _Choice(BASELINE, f"a small network from random weights, for {images.kind}; {instead}", {})
    return _with_pretrained(config, images, asked=weights == LIBRARY_WEIGHTS)


def _with_pretrained(config: RunConfig, images: Images, asked: bool) -> _Choice:
    """A pretrained network; without its weights `baseline`, or an error if the user has `asked` for them."""
    cache = cache_folder(config.data)
    network = _at_hand(cache)
    if network is None:
        from convsmith.transfer.pretrained import hub_weights

        network = lookup.PREFERRED[0]
        try:
            hub_weights(network, cache)  # which the library keeps on this machine
        except lookup.WeightsAbsent as error:
            if asked:
                raise
            lacks = f"such images call for pretrained weights ({worth()}), but {error}"
            return _Choice(BASELINE, f"a small network from random weights, for {images.kind}", {}, lacks)
    why = f"with pretrained {network}, for {images.kind}, {images.number}; {_OTHERWISE}"
    return _Choice(_preset(images), why, {"model": {"name": network}})


def _at_hand(cache: Path) -> str | None:
    """The first of the preferred networks whose weights are on this machine."""
    return next((model for model in lookup.PREFERRED if lookup.at_hand(model, cache)), None)


def _preset(images: Images) -> str:
    return LINEAR_PROBE if images.train is not None and images.train <= FEW_IMAGES else FINETUNE


def images_of(config: DataConfig, source: Source | None = None) -> Images:
    """What decides about the images of a source, by a sample of them."""
    from convsmith.data.kind import kind_of

    if source is None and len(config.sources) == 1 and (known := known_shape(config.sources[0])):
        return Images(f"small images ({known[1]} x {known[1]} pixels)", known[0] == 1, known[1] > SMALL_SIDE)
    source = source or open_source(config)
    found, train = kind_of(source), train_images(config, source)
    if found is None:  # which training will report, file by file
        return Images("images of which none of a sample can be decoded", False, False, train)
    side = round(found.side)
    if found.side <= SMALL_SIDE:
        return Images(f"small images (about {side} x {side} pixels)", found.is_gray, False, train)
    if found.is_gray and found.blank >= BLANK_SHARE:
        kind = f"gray drawings (about {side} x {side} pixels, {found.blank:.0%} background)"
        return Images(kind, True, train <= FEW_IMAGES, train)
    kind = f"{'gray ' if found.is_gray else ''}photographs (about {side} x {side} pixels)"
    return Images(kind, found.is_gray, True, train)


def train_images(config: DataConfig, source: Source) -> int:
    """About how many images will be trained on; the splits are made later."""
    given = set(source.given.tolist())
    rest = float((source.given == ("train" if "train" in given else "")).sum())
    if "val" not in given:
        rest *= 1 - (source.val_fraction if config.val_fraction is None else config.val_fraction)
    if not given & {"train", "val", "test"}:
        rest -= len(source) * (source.test_fraction if config.test_fraction is None else config.test_fraction)
    return round(min(rest, config.limit or rest))


def _random(network: str) -> str:
    if lookup.origin(network) is None:
        return f"{network} starts from random weights, since its library has no pretrained ones"
    return f"{network} starts from random weights; pretrained ones (--transfer.weights default) were {worth()}"
