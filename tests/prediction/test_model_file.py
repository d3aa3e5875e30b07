"""The two files of a model belong together, and nothing else than what was written is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from convsmith.data.config import Preprocessing
from convsmith.errors import RunFailed, UserError
from convsmith.nets.build import Network, build
from convsmith.nets.config import ModelConfig
from convsmith.nets.tensors import load_strictly, refuse_nonfinite
from convsmith.prediction.exported import Exported
from convsmith.prediction.model_file import WEIGHTS, ModelCard, load_model, read_card, read_model, save_model
from convsmith.prediction.predictor import Predictor
from convsmith.rundir import CARD

CPU = torch.device("cpu")
SMALL = ModelConfig(name="convnet", blocks=[{"channels": 2}], hidden=())
CLASSES = ("5", "6", "7")


def card_of(classes: tuple[str, ...] = CLASSES) -> ModelCard:
    sizes = {"working_size": 8, "image_size": 8, "channels": 1, "mean": (0.5,), "std": (0.5,)}
    how = {"resize": "stretch", "interpolation": "bilinear", "background": "white"}
    return ModelCard(
        architecture=SMALL, classes=classes, preprocessing=Preprocessing(**sizes, **how), layout="contiguous"
    )


def network() -> Network:
    torch.manual_seed(0)
    return build(SMALL, 1, 8, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, network(), card_of())
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], keeps_checksum: bool = False) -> None:
    card = json.loads((folder / CARD).read_text())
    if not keeps_checksum:
        del card["sha256"]
    change(card)
    (folder / CARD).write_text(json.dumps(card))


def test_equal_models_are_equal_files(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again", network(), card_of())
    for name in (CARD, WEIGHTS):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("name", [CARD, WEIGHTS])
def test_a_flipped_bit_is_noticed_or_has_no_effect(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    card, tensors = read_model(folder)
    for at in range(0, len(whole), 3):
        (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            now, loaded = read_model(folder)
        except UserError:
            continue
        assert now == card
        assert all(torch.equal(loaded[key], tensors[key]) for key in tensors), at


def test_a_card_that_was_changed_by_hand_is_refused_until_its_checksum_is_removed(folder: Path) -> None:
    edit(folder, lambda card: card.update(classes=["4", "6", "7"]), keeps_checksum=True)
    message = (
        f"'{folder / CARD}' is not as it was written with the weights beside it: restore it, or train again; "
        'if you have changed it on purpose, remove its "sha256"'
    )
    for read in (read_card, read_model):
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            read(folder)
    edit(folder, lambda card: None)
    assert read_card(folder).classes == ("4", "6", "7")
    assert load_model(folder, CPU)[1].classes == ("4", "6", "7")


def test_a_card_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "other", network(), card_of(("x", "y", "z")))
    (tmp_path / "other" / CARD).replace(folder / CARD)
    with pytest.raises(UserError, match="is not as it was written with the weights beside it"):
        load_model(folder, CPU)


def test_files_without_checksums_load(folder: Path) -> None:
    edit(folder, lambda card: None)
    _, tensors = read_model(folder)
    save_file(tensors, folder / WEIGHTS)
    assert load_model(folder, CPU)[1] == card_of()


@pytest.mark.parametrize("value", [-3, 0, 10**30, True, None, "x", [], {}, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "keys",
    [
        ("classes",),
        ("classes", 0),
        ("layout",),
        ("architecture", "name"),
        ("architecture", "hidden"),
        ("architecture", "blocks", 0, "channels"),
        ("preprocessing",),
        ("preprocessing", "image_size"),
        ("preprocessing", "working_size"),
        ("preprocessing", "channels"),
        ("preprocessing", "mean"),
        ("preprocessing", "std", 0),
        ("format_version",),
        ("unknown",),
    ],
)
def test_odd_values_in_a_card_are_one_line_or_as_good(folder: Path, keys: tuple[Any, ...], value: Any) -> None:
    def change(card: Any) -> None:
        *above, last = keys
        for key in above:
            card = card[key]
        card[last] = value

    edit(folder, change)
    try:
        model, card = load_model(folder, CPU)
    except UserError as error:
        said = str(error)
    else:
        said = str(folder)
        assert model(torch.zeros(2, 1, card.preprocessing.image_size, card.preprocessing.image_size)).shape == (2, 3)
    assert str(folder) in said
    assert len(said) < 400


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "[" * 100_000, '{"a":' * 100_000, '"' + "x" * 10_000])
def test_a_card_of_another_kind_is_one_line(folder: Path, text: str) -> None:
    (folder / CARD).write_text(text)
    with pytest.raises(UserError, match=r"model\.json") as caught:
        load_model(folder, CPU)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("header", ["", "[]", "3", "[" * 100_000, '{"sha256": 3}', '{"format_version": "x"}'])
def test_an_odd_header_of_the_weights_is_one_line(folder: Path, header: str) -> None:
    _, tensors = read_model(folder)
    save_file(tensors, folder / WEIGHTS, {"convsmith": header})
    with pytest.raises(UserError, match=re.escape(str(folder))) as caught:
        load_model(folder, CPU)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.complex64, torch.float8_e4m3fn])
def test_weights_are_floating_point_numbers_and_counters_are_integers(dtype: torch.dtype) -> None:
    model = network()
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    before = {name: value.clone() for name, value in tensors.items()}
    tensors["head.weight"] = torch.ones_like(tensors["head.weight"]).to(dtype)
    with pytest.raises(UserError, match=r"these has tensors of another type; head\.weight \(\w+ for floating\)"):
        load_strictly(model, tensors, "these")
    counter = next(name for name in tensors if name.endswith("num_batches_tracked"))
    with pytest.raises(UserError, match=re.escape(f"{counter} (floating for integer)")):
        load_strictly(model, before | {counter: torch.tensor(1.0)}, "these")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_precisions_fit_and_tensors_without_values_do_not() -> None:
    model = network()
    tensors = {
        name: value.half() if value.is_floating_point() else value.int() for name, value in model.state_dict().items()
    }
    load_strictly(model, tensors, "these")
    weight = tensors["head.weight"]
    for other in (weight.to_sparse(), weight.to("meta")):
        with pytest.raises(UserError, match=r"head\.weight \(without plain values for floating\)"):
            load_strictly(model, tensors | {"head.weight": other}, "these")


def test_a_tensor_of_a_million_dimensions_is_one_short_line() -> None:
    model = network()
    tensors = model.state_dict() | {"head.bias": torch.ones([1] * 30)}
    with pytest.raises(UserError, match=r"head\.bias \(30 dimensions for \(3,\)\)"):
        load_strictly(model, tensors, "these")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(folder: Path, value: float) -> None:
    model = network()
    with torch.no_grad():
        model.head.weight[0, 0] = value
    with pytest.raises(UserError, match=r"these has weights that are not finite numbers: head\.weight"):
        refuse_nonfinite(model, "these")
    save_model(folder, model, card_of())
    with pytest.raises(UserError, match="not finite"):
        load_model(folder, CPU)


def test_the_header_holds_one_entry(folder: Path) -> None:
    """Several would be written in an order that varies."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert list(file.metadata()) == ["convsmith"]


def test_logits_that_are_no_numbers_become_no_probabilities() -> None:
    """Of weights that are finite the product may not be."""
    model = Exported(lambda images: torch.full((len(images), 3), float("nan")))
    predictor = Predictor(model, card_of(), CPU)
    with pytest.raises(RunFailed, match="logits of 2 of 2 images are not finite numbers"):
        predictor.predict(list(torch.zeros(2, 8, 8, dtype=torch.uint8).numpy()))


def test_the_weights_load_into_the_libraries_networks_by_the_lines_of_the_guide(tmp_path: Path) -> None:
    """A resnet18 has the same parameters in torchvision and in timm."""
    guide = (Path(__file__).resolve().parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.S) if "load_file" in block]
    first, second = lines.replace("RUN/", f"{tmp_path.as_posix()}/").split("net = timm")
    resnet = ModelConfig(name="torchvision/resnet18")
    model = build(resnet, 3, 32, 2).eval()
    sizes = {"working_size": 32, "image_size": 32, "channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    rules = Preprocessing(**sizes, resize="stretch", interpolation="bilinear", background="white")
    card = ModelCard(architecture=resnet, classes=("a", "b"), preprocessing=rules, layout="contiguous")
    save_model(tmp_path / "model", model, card)
    images = torch.randn(2, 3, 32, 32)
    names: dict[str, Any] = {}
    for part in (first, f"net = timm{second}"):
        exec(part, names)
        with torch.no_grad():
            torch.testing.assert_close(names["net"].eval()(images), model(images))
