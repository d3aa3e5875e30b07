"""Weights of others: under whose names they come, what they expect, and that none is passed over in silence."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convsmith.errors import UserError
from convsmith.nets.backbones import Backbone, timm_backbone, torchvision_backbone
from convsmith.nets.tensors import load_strictly
from convsmith.transfer import lookup
from convsmith.transfer.pretrained import as_ours, expected_input, hub_weights, read_tensors

LITE = "timm/tf_efficientnet_lite0"


def theirs(name: str = "mobilenet_v3_small", classes: int = 11) -> nn.Module:
    from torchvision import models

    torch.manual_seed(1)
    return models.get_model(name, weights=None, num_classes=classes).eval()


def differing(model: nn.Module, tensors: dict[str, Tensor]) -> set[str]:
    return model.state_dict().keys() ^ tensors.keys()


def test_all_but_the_head_is_the_librarys_own() -> None:
    source = theirs()
    model = torchvision_backbone("mobilenet_v3_small", 3, 32, 5).eval()
    head = model.head.weight.clone()
    tensors, said = as_ours(model, source.state_dict())
    assert said == []
    model.load_state_dict(tensors)
    source.classifier[3] = nn.Identity()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.features(images), source(images))
    assert torch.equal(model.head.weight, head)
    assert model.head.out_features == 5


def test_a_network_that_asks_for_the_version_of_its_names_is_filled() -> None:
    from torchvision import models

    source = models.mnasnet0_5(weights=None)
    model = torchvision_backbone("mnasnet0_5", 3, 32, 5)
    load_strictly(model, as_ours(model, source.state_dict())[0], "these")
    assert torch.equal(model.state_dict()["net.layers.0.weight"], source.layers[0].weight)


def test_names_of_a_run_are_ours_already() -> None:
    one = torchvision_backbone("mobilenet_v3_small", 3, 32, 9)
    other = torchvision_backbone("mobilenet_v3_small", 3, 32, 5)
    tensors, _ = as_ours(other, one.state_dict())
    assert torch.equal(tensors["net.features.0.0.weight"], one.net.features[0][0].weight)  # type: ignore[index,union-attr]
    assert tensors["head.weight"].shape == (5, other.head.in_features)


def test_a_gray_stem_answers_to_gray_as_the_coloured_one_does() -> None:
    source = theirs()
    model = torchvision_backbone("mobilenet_v3_small", 1, 32, 5).eval()
    tensors, said = as_ours(model, source.state_dict())
    model.load_state_dict(tensors)
    assert said == ["net.features.0.0: its weights for 3 channels are summed to 1"]
    gray = torch.randn(2, 1, 32, 32)
    source.classifier[3] = nn.Identity()
    torch.testing.assert_close(model.features(gray), source(gray.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)


def test_what_does_not_match_is_kept_for_the_strict_loader_to_list() -> None:
    model = torchvision_backbone("mobilenet_v3_small", 3, 32, 5)
    tensors, _ = as_ours(model, torch.nn.Linear(2, 2).state_dict())
    assert {"net.weight", "net.bias", "net.features.0.0.weight"} <= differing(model, tensors)


def test_counters_of_old_files_may_be_missing_and_nothing_else() -> None:
    model = torchvision_backbone("mobilenet_v3_small", 3, 32, 5)
    old = {name: value for name, value in theirs().state_dict().items() if "num_batches" not in name}
    assert differing(model, as_ours(model, old)[0]) == set()
    old.pop("features.0.1.running_mean")
    assert differing(model, as_ours(model, old)[0]) == {"net.features.0.1.running_mean"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_give_the_tensors_that_were_saved(tmp_path: Path, suffix: str) -> None:
    tensors = {"a.weight": torch.randn(3, 2), "b": torch.arange(4)}
    path = tmp_path / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"state_dict": tensors, "epoch": 3}, path)
    read = read_tensors(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


class Bad:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"no tensors", "cannot be read"),
        ("a.pth", b"no tensors", "a.pth'"),
        ("a.pth", b"", "cannot be read"),
        ("a.h5", b"", "is not a file of weights: give a .safetensors or .pth file"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_tensors(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"weight": torch.ones(1), "bad": Bad()}, path)
    with pytest.raises(UserError, match=r"contains more than weights.* save its state_dict\(\) as .safetensors"):
        read_tensors(path)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="contains no named tensors"):
        read_tensors(path)


def test_torchvisions_weights_say_what_they_expect() -> None:
    spec = expected_input("torchvision/resnet18")
    assert spec is not None
    assert (spec.size, spec.smallest, spec.channels, spec.resize, spec.interpolation) == (
        224,
        96,
        3,
        "crop",
        "bilinear",
    )
    assert spec.crop == pytest.approx(224 / 256)
    assert spec.mean == (0.485, 0.456, 0.406)
    halved = expected_input("torchvision/googlenet")
    assert halved is not None
    assert halved.mean == halved.std == (0.5, 0.5, 0.5)


def test_timms_weights_say_what_they_expect() -> None:
    spec = expected_input(LITE)
    assert spec is not None
    assert (spec.size, spec.crop, spec.interpolation, spec.mean, spec.std) == (
        224,
        0.875,
        "bicubic",
        (0.5,) * 3,
        (0.5,) * 3,
    )
    fixed = expected_input("timm/vit_tiny_patch16_224")
    assert fixed is not None
    assert fixed.smallest == 224, "its positions are learnt for one size"
    torchvisions = expected_input("torchvision/vit_b_16")
    assert torchvisions is not None
    assert torchvisions.smallest == 224


def test_of_our_own_networks_nothing_is_known() -> None:
    assert expected_input("simple-cnn") is None
    with pytest.raises(UserError, match="'simple-cnn' has no pretrained weights; choose a --model that has"):
        hub_weights("simple-cnn", Path("nowhere"))


def test_tensors_that_are_no_dense_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for odd in (
        torch.zeros(1).expand(64, 10**12, 3, 3),  # 4 bytes that stand for 2 PB
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, device="meta"),
    ):
        torch.save({"good": torch.ones(2), "odd": odd}, path)
        with pytest.raises(UserError, match="its tensor 'odd' is sparse, quantised, without values or repeated"):
            read_tensors(path)


def test_a_file_of_a_million_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They took a minute and gigabytes, and a header of 60 MB has room for them."""
    path = tmp_path / "weights.safetensors"
    save_file({str(number): torch.zeros(0) for number in range(3)}, path)
    monkeypatch.setattr("convsmith.nets.tensors.MOST", 2)
    with pytest.raises(UserError, match=r"cannot be read \(3 tensors, but a network has 2 at most\)"):
        read_tensors(path)


def test_methods_that_a_file_replaces_are_not_called(tmp_path: Path) -> None:
    path, stored = tmp_path / "weights.pth", OrderedDict(weight=torch.ones(2))
    for name in ("values", "get", "keys"):
        setattr(stored, name, 1)
    torch.save(stored, path)
    assert torch.equal(read_tensors(path)["weight"], torch.ones(2))


def test_torch_does_not_warn_before_our_error(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(2), "code": os.system}, path, pickle_protocol=4)
    with pytest.raises(UserError, match="contains more than weights"):
        read_tensors(path)
    assert not recwarn.list


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Servers answer, and the libraries have kept nothing."""
    monkeypatch.setattr(lookup, "unreachable", lambda origin: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def test_torchvisions_weights_come_by_its_checked_way(
    reached: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def download(url: str, **options: object) -> dict[str, Tensor]:
        asked.update(options, url=url)
        return {"weight": torch.ones(1)}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    tensors, what = hub_weights("torchvision/resnet18", tmp_path)
    assert tensors.keys() == {"weight"}
    assert what == "torchvision's ResNet18_Weights.IMAGENET1K_V1"
    assert asked["check_hash"] is True
    assert asked["weights_only"] is True


def test_a_kept_file_of_the_right_name_and_another_content_is_refused(
    reached: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch itself compares only what it downloads."""
    from torchvision.models import ResNet18_Weights

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **options: {})
    (tmp_path / "checkpoints").mkdir()
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()[:8]
    kept = tmp_path / "checkpoints" / f"resnet18-{digest}.pth"
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", f"https://example.org/{kept.name}", raising=False)
    kept.write_bytes(content)
    hub_weights("torchvision/resnet18", tmp_path)
    kept.write_bytes(content + b"!")
    with pytest.raises(UserError, match=rf"SHA-256 does not begin with {digest}, as its name says\): delete it"):
        hub_weights("torchvision/resnet18", tmp_path)


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), RuntimeError("invalid hash value")])
def test_a_download_that_fails_asks_for_the_very_file(
    reached: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    place = re.escape(str(tmp_path / "weights" / "resnet18.pth"))
    with pytest.raises(lookup.WeightsAbsent, match=rf"fetch https\S+resnet18-\w+.pth on .* save it as '{place}', or"):
        hub_weights("torchvision/resnet18", tmp_path)


def test_a_hub_that_fails_says_the_same(reached: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(lookup.WeightsAbsent, match=r"\(no route\): fetch https.*/model.safetensors on another"):
        hub_weights(LITE, tmp_path)
    with pytest.raises(UserError, match="'resnet10t_nothing' does not exist"):
        hub_weights("timm/resnet10t_nothing", tmp_path)


def test_unknown_backbones_get_the_nearest_names() -> None:
    with pytest.raises(UserError, match="Did you mean 'resnet18'"):
        hub_weights("torchvision/resnet19", Path("nowhere"))


def test_the_real_weights_fill_every_layer(shared: Path) -> None:
    model = timm_backbone("tf_efficientnet_lite0", 3, 64, 2)
    tensors, said = as_ours(model, read_tensors(shared / "weights" / "tf_efficientnet_lite0.safetensors"))
    assert isinstance(model, Backbone)
    assert differing(model, tensors) == set()
    assert said == []
