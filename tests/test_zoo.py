"""`convsmith models`: what is known of networks without downloading or training them."""

from __future__ import annotations

from pathlib import Path

import pytest

import convsmith
from convsmith.cli import main
from convsmith.errors import UserError
from convsmith.training import speeds
from convsmith.transfer.lookup import PREFERRED

LITE = "timm/tf_efficientnet_lite0"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVSMITH_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    return tmp_path


def test_parameters_and_macs_are_the_librarys(cache: Path) -> None:
    """torchvision states both of its weights, in units of 10^9 operations."""
    from torchvision.models import ResNet18_Weights

    (row,) = convsmith.models("torchvision/resnet18")
    stated = ResNet18_Weights.DEFAULT.meta
    assert row["parameters"] == stated["num_params"]
    assert row["macs"] / 1e9 == pytest.approx(stated["_ops"], abs=0.001)
    assert (row["image_size"], row["weights"], row["images_per_second"]) == (224, None, None)


def test_what_is_on_this_machine_is_said(cache: Path) -> None:
    file = cache / "weights" / "tf_efficientnet_lite0.safetensors"
    file.touch()
    speeds.remember(cache, LITE, 123.4)
    (row,) = convsmith.models("*/tf_efficientnet_lite0")
    assert (row["model"], row["weights"], row["images_per_second"]) == (LITE, file, 123.4)


@pytest.mark.parametrize("text", ["{", "[]", '{"images_per_second": "1"}', '{"a": 1, "b": 2, "c": 3}'])
def test_a_damaged_record_of_a_speed_is_as_good_as_none(cache: Path, text: str) -> None:
    speeds.remember(cache, LITE, 1.0)
    (cache / "speeds" / "timm-tf_efficientnet_lite0.json").write_text(text)
    assert speeds.recall(cache, LITE) is None


def test_a_pattern_is_a_part_of_names_and_the_rest_is_counted(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convsmith.zoo._facts", lambda name, channels, size: (1_000_000, None))
    assert main(["models", "lite", "--limit", "1"]) == 0
    told = capsys.readouterr().out
    assert "timm/coat_lite_medium" in told
    assert "more match: narrow the pattern, or give --limit" in told
    assert "next: convsmith train --model timm/coat_lite_medium --data DATA" in told
    monkeypatch.setattr(
        "convsmith.zoo._facts", lambda name, channels, size: (None if "coat" in name else len(name), None)
    )
    assert main(["models", "lite"]) == 0
    assert (
        "next: convsmith train --model timm/efficientnet_lite0 --data DATA" in capsys.readouterr().out
    )  # the smallest
    (cache / "weights" / "tf_efficientnet_lite4.safetensors").touch()
    assert main(["models", "lite"]) == 0
    assert "next: convsmith train --model timm/tf_efficientnet_lite4 --data DATA" in capsys.readouterr().out
    assert main(["models", "resnot"]) == 2
    assert "no network with pretrained weights matches 'resnot'" in capsys.readouterr().err
    with pytest.raises(UserError):
        convsmith.models("resnot")
    assert {row["model"] for row in convsmith.models()} >= set(PREFERRED)


def test_the_weights_of_a_bare_name_have_no_tag(cache: Path) -> None:
    from convsmith.zoo import matching

    names = matching("timm/resnet18*")
    assert "timm/resnet18" in names
    assert "timm/resnet18.tv_in1k" in names
    assert len(names) == len(set(names))
