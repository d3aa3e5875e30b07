"""Which network a file of weights belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convsmith.config import settings_of
from convsmith.errors import UserError
from convsmith.recipes import decide
from convsmith.transfer import recognise as module
from convsmith.transfer.recognise import recognise


def saved(path: Path, network: str, classes: int = 1_000) -> Path:
    if network.startswith("timm"):
        import timm

        tensors = timm.create_model(network.removeprefix("timm/"), num_classes=classes).state_dict()
    else:
        from torchvision import models

        tensors = models.get_model(network, num_classes=classes).state_dict()
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


@pytest.mark.parametrize(
    ("file", "network", "classes", "name"),
    [
        ("resnet18-f37072fd.pth", "resnet18", 1_000, "torchvision/resnet18"),
        ("resnet18.safetensors", "resnet18", 7, "timm/resnet18"),
        (
            "mobilenetv3_small_050.lamb_in1k.safetensors",
            "timm/mobilenetv3_small_050",
            1_000,
            "timm/mobilenetv3_small_050.lamb_in1k",
        ),
    ],
)
def test_the_name_of_the_file_is_tried_first(tmp_path: Path, file: str, network: str, classes: int, name: str) -> None:
    assert recognise(saved(tmp_path / file, network, classes)) == name


def test_names_and_shapes_tell_what_the_file_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    fits = module._fits
    monkeypatch.setattr(
        "timm.list_models", lambda: ["resnet18", "resnet34", "mobilenetv3_small_050", "vit_tiny_r_s16_p8_224"]
    )
    monkeypatch.setattr(module, "_fits", lambda name, shapes: tried.append(name) or fits(name, shapes))
    assert (
        recognise(saved(tmp_path / "model.safetensors", "timm/mobilenetv3_small_050", 5))
        == "timm/mobilenetv3_small_050"
    )
    assert tried == ["timm/mobilenetv3_small_050"], "those with other names are not built"


def test_of_several_that_fit_the_user_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.list_models", lambda: ["efficientnet_lite0", "tf_efficientnet_lite0"])
    path = saved(tmp_path / "best.safetensors", "timm/tf_efficientnet_lite0", 3)
    with pytest.raises(
        UserError, match=r"fits several networks \(timm/efficientnet_lite0, timm/tf_efficientnet_lite0\)"
    ):
        recognise(path)


def test_weights_of_no_library_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_torchvisions", list)
    save_file({"a.weight": torch.ones(2)}, tmp_path / "resnet18.safetensors")
    with pytest.raises(UserError, match=r"of no network of timm or torchvision that .* would tell: name it, --model"):
        recognise(tmp_path / "resnet18.safetensors")


def test_training_says_which_network_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "mobilenetv3_small_050.safetensors", "timm/mobilenetv3_small_050")
    notes: list[str] = []
    flags = {"transfer.weights": str(path), "data.source": "cifar10"}
    for preset in ("linear-probe", None):
        config = decide(settings_of(preset, None, flags), listener=lambda event: notes.append(event.text))
        assert config.model.name == "timm/mobilenetv3_small_050"
        assert config.transfer.method == preset or preset is None
    assert notes[0].startswith("'mobilenetv3_small_050.safetensors' holds weights of timm/mobilenetv3_small_050, by")
