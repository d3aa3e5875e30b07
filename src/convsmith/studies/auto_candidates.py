"""The candidates of `auto`: which backbones, sizes and recipes are worth a try on which images. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convsmith.config import Layer, merge, preset_layer
from convsmith.rundir import default_name

SMALL = 64  # pixels of the shorter side up to which images are those that small nets are made for
BEYOND = 1.25  # times its own input size, where a backbone is often better (Touvron et al. 2019, arXiv:1906.06423)
ENLARGED = 128  # pixels to which small images are enlarged for a backbone, besides its own size
STEP = 32  # pixels: the total stride of most backbones, of which sizes are multiples
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # transfer.head_l2, falling

Family = Literal["probe", "finetune", "scratch"]


@dataclass(frozen=True)
class Candidate:
    """`layer` is what it changes in the config of the race; a training takes from `least` to `most` epochs."""

    name: str
    family: Family
    layer: Layer
    least: int = 1
    most: int = 1

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return default_name(self.name)


def probes(backbones: Mapping[str, tuple[Path, int]], side: int) -> list[Candidate]:
    """A solved head on each backbone's features at each size; `backbones` maps names to files and input sizes.

    The cheapest comes first, so that there is something, and then the largest, which are most often the best. `side` is
    the shorter side of most images in pixels: those that are smaller than a backbone's own size gain nothing beyond it.
    """
    found = []
    for model, (file, own) in backbones.items():
        sizes = [ENLARGED, own] if side <= SMALL else [own]
        if side >= own:
            sizes.append(round(BEYOND * own / STEP) * STEP)
        for size in dict.fromkeys(sizes):
            layer = {
                "data": {"image_size": size},
                "model": {"name": model},
                "transfer": {"weights": str(file), "freeze": "all-but-head", "head_l2": 1.0},
                # The head is solved before the first step, which then leaves it where it is.
                "optim": {"name": "sgd", "lr": 1e-6, "momentum": 0.0},
                "train": {"epochs": 1},
            }
            found.append(Candidate(f"probe {model.partition('/')[2]} {size}", "probe", layer))
    found.sort(key=lambda probe: int(probe.layer["data"]["image_size"]))
    return [*found[:1], *reversed(found[1:])]


def start_of(probe: Layer, penalty: float) -> Layer:
    """What a finetuning takes over from a probe with this layer: the network, and its head, solved with `penalty`."""
    start = {section: probe[section] for section in ("data", "model")}
    return start | {"transfer": {"weights": probe["transfer"]["weights"], "head_l2": penalty}}


def finetuned(probe: Candidate, penalty: float) -> Candidate:
    """The finetuning that starts from a probe's head, solved with `penalty`."""
    own = merge(
        preset_layer("finetune"),
        start_of(probe.layer, penalty),
        {
            "transfer": {
                "unfreeze": {"after": 1, "every": 1, "stages": 4, "most": 8},
                "feature_views": 1,
            },
            "optim": {"lr": 0.0005},
            "train": {"patience": None, "batch_size": 16},
        },
    )
    return Candidate(probe.name.replace("probe", "finetune", 1), "finetune", own, least=4, most=12)


def small_nets(side: int, images: int) -> list[Candidate]:
    """Nets from random weights, the cheapest first; large images are shown to them at `SMALL` pixels."""
    size: Layer = {"data": {"image_size": SMALL}} if side > SMALL else {}
    batch = 32 if images < 1_000 else 64 if images < 10_000 else 128
    random: Layer = {"transfer": {"weights": "none"}, "train": {"batch_size": batch, "monitor": "val_loss"}}
    simple = merge(preset_layer("baseline"), size, random)
    averaged = merge(preset_layer("digits"), {"augment": {"shift": 0.1}}, size, random)
    averaged["data"] = size.get("data", {})
    found = [Candidate("simple-cnn", "scratch", simple, 5, 30), Candidate("simple-cnn ema", "scratch", averaged, 8, 60)]
    if side >= 16:
        strong = preset_layer("strong")
        rate = strong["optim"]["lr"] * batch / strong["train"]["batch_size"]
        strong = merge(strong, size, random, {"optim": {"lr": rate}, "augment": {"shift": 0.0625, "cutout": 0}})
        strong["data"] = size.get("data", {})
        most = max(14, min(100, 60_000 // images))
        found.append(Candidate("strong", "scratch", strong, 8, most))
        plain = merge(strong, {"augment": {"hflip": False}})
        found.append(Candidate("strong unmirrored", "scratch", plain, 8, most))
    return found
