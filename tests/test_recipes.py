"""The recipe that data, network and weights choose where the user has named none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convsmith import recipes
from convsmith.config import compose, settings_of
from convsmith.data.config import DataConfig
from convsmith.data.kind import kind_of
from convsmith.data.sources import from_arrays
from convsmith.errors import UserError
from convsmith.recipes import decide
from convsmith.transfer import lookup

LITE = "timm/tf_efficientnet_lite0"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without weights, and servers that cannot be reached."""
    monkeypatch.setenv("CONVSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lookup, "origin", lambda model: lookup.Origin("", "https://example.org/file", None))
    monkeypatch.setattr(lookup, "unreachable", lambda origin: "no route to host")
    return tmp_path / "cache"


def give_weights(cache: Path, name: str = "tf_efficientnet_lite0") -> None:
    (cache / "weights").mkdir(parents=True)
    (cache / "weights" / f"{name}.safetensors").touch()


def images(folder: Path, side: int, colours: int = 3, blank: bool = False, each: int = 2) -> str:
    random = np.random.default_rng(0)
    for label in ("ants", "bees"):
        (folder / label).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 256, (side, side, colours), dtype=np.uint8)
            if blank:
                pixels[side // 4 :] = 255
            Image.fromarray(pixels[..., 0] if colours == 1 else pixels).save(folder / label / f"{number}.png")
    return str(folder)


def decided(**flags: str) -> tuple[str, str, str, list[str]]:
    """Network, weights and method of the decided config, and the notes."""
    notes: list[str] = []
    settings = settings_of(None, None, {key.replace("__", "."): value for key, value in flags.items()})
    config = decide(settings, listener=lambda event: notes.append(event.text))  # type: ignore[attr-defined]
    return config.model.name, config.transfer.weights, str(config.transfer.method), notes


def test_photographs_get_a_pretrained_network_by_their_number(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_weights(cache)
    photos = images(tmp_path / "photos", 100)
    *found, notes = decided(data__source=photos)
    assert found == [LITE, "default", "linear-probe"]
    assert notes == [
        f"recipe: linear-probe, with pretrained {LITE}, for photographs (about 100 x 100 pixels), about 3 train "
        "images; others: --model NAME, --preset baseline (small, from random weights)"
    ]
    monkeypatch.setattr(recipes, "FEW_IMAGES", 2)
    assert decided(data__source=photos)[2] == "finetune"
    assert decided(data__source=photos, transfer__weights="none")[:2] == ("simple-cnn", "none")


def test_single_flags_stay_on_top_of_the_recipe(tmp_path: Path, cache: Path) -> None:
    give_weights(cache)
    flags = {"data.source": images(tmp_path / "photos", 100), "optim.lr": "0.5", "data.image_size": "96"}
    config = decide(settings_of(None, None, flags))
    assert (config.optim.lr, config.data.image_size, config.train.monitor) == (0.5, 96, "val_loss")
    assert config.train.batch_size == compose("linear-probe", None, {}).train.batch_size


@pytest.mark.parametrize(
    ("kind", "side", "colours", "blank", "words"),
    [
        ("small", 64, 3, False, "small images (about 64 x 64 pixels)"),
        ("gray drawings", 100, 1, True, "gray drawings (about 100 x 100 pixels, 76% background)"),
    ],
)
def test_small_images_and_drawings_get_a_small_net_from_random_weights(
    kind: str,
    side: int,
    colours: int,
    blank: bool,
    words: str,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_weights(cache)
    monkeypatch.setattr(recipes, "FEW_IMAGES", 1)
    *found, notes = decided(data__source=images(tmp_path / "data", side, colours, blank))
    assert found == ["simple-cnn", "none", "None"]
    assert notes[0].startswith(f"recipe: baseline, a small network from random weights, for {words}; others: --model")


def test_few_drawings_get_a_pretrained_network(tmp_path: Path) -> None:
    found = recipes.images_of(DataConfig(source=images(tmp_path / "data", 100, 1, True)))
    assert found.suit_pretrained
    assert found.kind.startswith("gray drawings")


def test_named_sets_decide_without_a_download() -> None:
    assert decided(data__source="cifar10")[0] == decided(data__source="mnist")[0] == decided()[0] == "simple-cnn"
    assert "worth 28 to 40 points" in decided(data__source="cifar10")[3][0]
    assert "points" not in decided(data__source="mnist")[3][0], "the studies are of photographs"


def test_gray_photographs_are_photographs(tmp_path: Path) -> None:
    found = recipes.images_of(DataConfig(source=images(tmp_path / "data", 100, 1)))
    assert (found.kind, found.suit_pretrained) == ("gray photographs (about 100 x 100 pixels)", True)


def test_gray_stored_as_colour_is_gray_and_arrays_are_looked_at() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (6, 80, 50, 1), dtype=np.uint8)
    found = kind_of(from_arrays(gray.repeat(3, axis=3), [0, 1] * 3))
    assert found is not None
    assert found.is_gray
    assert found.side == pytest.approx(4000**0.5)


def test_images_of_the_test_split_have_no_part_in_the_choice() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 50, 3), dtype=np.uint8)
    pixels[:4] = pixels[:4, :, :, :1]
    found = kind_of(from_arrays(pixels, [0, 1] * 20, given=["train"] * 4 + ["test"] * 36))
    assert found is not None
    assert found.is_gray


def test_without_weights_photographs_are_trained_from_random_ones_and_the_line_says_so(tmp_path: Path) -> None:
    photos = images(tmp_path / "photos", 100)
    *found, notes = decided(data__source=photos)
    assert found == ["simple-cnn", "none", "None"]
    assert notes[0] == "recipe: baseline, a small network from random weights, for photographs (about 100 x 100 pixels)"
    assert notes[1].startswith("such images call for pretrained weights (worth ")
    assert "but the weights of 'timm/tf_" in notes[1]
    assert "fetch https://example.org/file on another computer and save it as" in notes[1]
    assert len(notes) == 2
    with pytest.raises(lookup.WeightsAbsent, match="no route to host"):
        decided(data__source=photos, transfer__weights="default")


def test_a_named_network_gets_its_recipe(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = images(tmp_path / "photos", 100)
    assert decided(data__source=photos, model__name=LITE)[:3] == (LITE, "default", "linear-probe")
    assert decided(data__source=photos, model__name="small-resnet")[:2] == ("small-resnet", "none")
    assert decided(data__source=photos, model__width="8")[:2] == ("simple-cnn", "none")
    *found, notes = decided(data__source=photos, model__name=LITE, transfer__weights="none")
    assert found == [LITE, "none", "None"]
    assert "pretrained ones (--transfer.weights default) were worth 28 to 40 points over random ones in" in notes[1]
    monkeypatch.setattr(lookup, "origin", lambda model: None)
    *found, notes = decided(data__source=photos, model__name="timm/test_vit4")
    assert found == ["timm/test_vit4", "none", "None"]
    assert "starts from random weights, since its library has no pretrained ones" in notes[1]


def test_a_preset_a_file_and_a_network_of_ones_own_leave_nothing_open(tmp_path: Path) -> None:
    for preset in ("baseline", "strong"):
        assert decide(settings_of(preset, None, {"data.source": "nowhere/at/all"})) == compose(
            preset, None, {"data.source": "nowhere/at/all"}
        )
    with pytest.raises(UserError, match="was not found"):
        decided(data__source="nowhere/at/all")


@pytest.mark.parametrize("preset", ["linear-probe", "finetune"])
def test_a_preset_for_pretrained_weights_gets_a_network_that_has_them(preset: str, cache: Path) -> None:
    give_weights(cache, "resnet18")
    notes: list[str] = []
    config = decide(settings_of(preset, None, {}), listener=lambda event: notes.append(event.text))
    assert (config.model.name, config.transfer.method) == ("timm/resnet18", preset)
    assert notes == ["network: timm/resnet18; others: --model NAME"]
    assert decide(settings_of(preset, None, {"model.name": LITE})).model.name == LITE


def test_a_folder_that_bears_the_name_of_a_choice_is_not_taken_for_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    give_weights(cache)
    for word in ("auto", "default", "none"):
        (tmp_path / word).mkdir()
    photos = images(tmp_path / "photos", 100)
    assert decided(data__source=photos)[0] == LITE
    assert decided(data__source=photos, transfer__weights="default")[0] == LITE


def test_the_weights_of_auto_follow_the_network() -> None:
    assert compose(None, None, {}).transfer.weights == "none"
    library = compose("baseline", None, {"model.name": "torchvision/resnet18"})
    assert library.transfer.weights == "default"
    assert library.with_values(model={"name": "simple-cnn"}).transfer.weights == "none"
    assert compose("baseline", None, {"transfer.weights": "auto"}).transfer.weights == "none"
    assert "auto" not in library.to_yaml().split("transfer:")[1].split("train:")[0]
