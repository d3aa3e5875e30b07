"""TrivialAugment and RandAugment: operations and strengths against torchvision's, on the same images."""

from __future__ import annotations

from collections import Counter
from math import atan, degrees

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from convsmith.data.augment import BINS, OPERATIONS, apply_policy
from convsmith.data.config import AugmentConfig

SIDE = 20


def images(channels: int = 3, size: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (7, channels, *size), generator=draw, dtype=torch.uint8)
    slope = torch.linspace(40, 190, size[1]).to(torch.uint8).expand(1, channels, *size)
    return torch.cat([noise, slope, torch.full((1, channels, *size), 77, dtype=torch.uint8), noise[:1] // 3 + 60])


def sheared(image: torch.Tensor, x: float = 0.0, y: float = 0.0) -> torch.Tensor:
    return F.affine(image, 0.0, [0, 0], 1.0, [degrees(atan(x)), degrees(atan(y))], center=[0, 0])


def translated(image: torch.Tensor, x: float = 0.0, y: float = 0.0) -> torch.Tensor:
    return F.affine(image, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0])


TORCHVISIONS = {
    "Identity": lambda image, strength: image,
    "ShearX": lambda image, strength: sheared(image, x=strength),
    "ShearY": lambda image, strength: sheared(image, y=strength),
    "TranslateX": lambda image, strength: translated(image, x=strength),
    "TranslateY": lambda image, strength: translated(image, y=strength),
    "Rotate": lambda image, strength: F.rotate(image, strength),
    "Brightness": lambda image, strength: F.adjust_brightness(image, 1 + strength),
    "Color": lambda image, strength: F.adjust_saturation(image, 1 + strength),
    "Contrast": lambda image, strength: F.adjust_contrast(image, 1 + strength),
    "Sharpness": lambda image, strength: F.adjust_sharpness(image, 1 + strength),
    "Posterize": lambda image, strength: F.posterize(image, 8 - round(strength)),
    "Solarize": lambda image, strength: F.solarize(image, 255 * (1 - strength)),
    "AutoContrast": lambda image, strength: F.autocontrast(image),
    "Equalize": lambda image, strength: F.equalize(image),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(SIDE, SIDE), (33, 33), (SIDE, 33)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_torchvisions_at_every_strength(name: str, size: tuple[int, int], channels: int) -> None:
    batch, operation = images(channels, size), OPERATIONS[name]
    for rand in (False, True):
        for level in (0, 1, 7, 13, 22, BINS):
            strength = operation.largest(size, rand) * level / BINS
            for signed in (strength, -strength) if operation.signed else (strength,):
                ours = operation.apply(batch, torch.full((len(batch),), signed)).int()
                theirs = torch.stack([TORCHVISIONS[name](image, signed) for image in batch]).int()
                # Where the nearest pixel is a tie, rounding decides; elsewhere a count is lost at most.
                assert ((ours - theirs).abs() > 1).float().mean() < 0.004, (rand, level, signed)


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (40, 96)])
@pytest.mark.parametrize(("policy", "rand"), [(v2.TrivialAugmentWide, False), (v2.RandAugment, True)])
def test_operations_and_strengths_are_those_of_torchvisions_policy(policy, rand: bool, size: tuple[int, int]) -> None:
    space = policy._AUGMENTATION_SPACE
    assert set(space) == set(OPERATIONS)
    for name, operation in OPERATIONS.items():
        strengths, signed = space[name]
        theirs = strengths(BINS + 1, *size)
        assert operation.signed == signed
        if theirs is None:
            assert operation.largest(size, rand) == 0
            continue
        ours = operation.largest(size, rand) * torch.arange(BINS + 1) / BINS
        of_theirs = {"Posterize": lambda ours: 8 - ours.round(), "Solarize": lambda ours: 1 - ours}
        torch.testing.assert_close(of_theirs.get(name, lambda ours: ours)(ours).float(), theirs.float())


def test_trivial_draws_each_operation_equally_often_and_applies_one_to_each_image(monkeypatch) -> None:
    seen: Counter[str] = Counter()
    strengths: list[float] = []

    def watched(name: str):
        operation = OPERATIONS[name]

        def apply(batch: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
            seen[name] += len(batch)
            if name == "Solarize":
                strengths.extend((strength * BINS).round().int().tolist())
            return operation.apply(batch, strength)

        return type(operation)(apply, operation.trivial, operation.rand, operation.signed, operation.along)

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, watched(name))
    batch = images()[:1].expand(4000, -1, -1, -1)
    changed = apply_policy(batch, AugmentConfig(trivial=True), np.random.default_rng([0, 1, 2]))
    assert changed.shape == batch.shape
    assert sum(seen.values()) == 4000
    assert stats.chisquare([seen[name] for name in OPERATIONS]).pvalue > 0.001
    assert set(strengths) == set(range(BINS + 1))
    seen.clear()
    strengths.clear()
    apply_policy(batch, AugmentConfig(rand_ops=3, rand_magnitude=11), np.random.default_rng([0, 1, 2]))
    assert sum(seen.values()) == 3 * 4000
    assert set(strengths) == {11}


def test_each_image_gets_its_own_operation_in_place() -> None:
    """Images that are told apart by their colour alone keep their places in the batch."""
    batch = (torch.arange(40, dtype=torch.uint8) * 5 + 20).view(40, 1, 1, 1).expand(40, 3, 8, 8).contiguous()
    same = apply_policy(batch, AugmentConfig(rand_ops=1, rand_magnitude=0), np.random.default_rng(0))
    # At strength 0 nothing changes a flat image: solarize begins at 255, and there is no contrast to stretch.
    assert torch.equal(same, batch)
    floats = apply_policy(batch.float() + 0.3, AugmentConfig(rand_ops=1, rand_magnitude=0), np.random.default_rng(0))
    assert torch.equal(floats, batch)


def test_two_policies_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match=r"augment\.trivial and augment\.rand_ops are two policies: choose one"):
        AugmentConfig(trivial=True, rand_ops=2)
