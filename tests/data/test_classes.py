from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convsmith.config import flag_layer, validate
from convsmith.data.classes import LEFT_OUT, look_alike, with_classes, without_val
from convsmith.data.config import DataConfig, MinImages
from convsmith.data.dataset import input_shape, open_dataset
from convsmith.data.source import HIDDEN, NO_IMAGE
from convsmith.data.sources import from_arrays, open_source
from convsmith.errors import UserError
from convsmith.terminal import spelled

Plant = Callable[..., Path]


def test_classes_that_are_not_named_are_left_out_and_counted(plant: Plant) -> None:
    root = plant("ant/1.png", "bee/1.png", "bee/2.png", "cat/1.png", "cat/2.png", "cat/.3.png")
    source = open_source(DataConfig(source=str(root)))
    part = with_classes(source, ("cat", "bee"))
    assert (part.classes, part.labels.tolist()) == (("bee", "cat"), [0, 0, 1, 1])
    assert [part.read(row) for row in range(4)] == [root / name for name in part.ids]
    assert part.unused == {HIDDEN: ("cat/.3.png",), LEFT_OUT: ("ant/1.png",)}
    assert part.fingerprint != source.fingerprint
    assert with_classes(source, MinImages(min_images=2)).ids == part.ids
    assert with_classes(source, MinImages(min_images=1)) is source
    with pytest.raises(UserError, match=r"data.classes 'dog' does not exist\..* Choices: ant, bee, cat"):
        with_classes(source, ("cat", "dog"))
    with pytest.raises(UserError, match=r"leaves fewer than two classes .* have 2 and 2 images, so lower min_images 3"):
        with_classes(source, MinImages(min_images=3))


def test_the_section_takes_names_or_a_rule() -> None:
    for text, value in (("[cat, 7]", ("cat", "7")), ("min_images: 5", MinImages(min_images=5)), ("none", None)):
        assert validate(flag_layer({"data.classes": text})).data.classes == value
    for text in ("cat", "[cat]", "min_images: 0", "max_images: 5", "min_images: true"):
        with pytest.raises(UserError, match=r"data\.classes: must (name two or more|be names or a rule)"):
            validate(flag_layer({"data.classes": text}))
    config = validate({"data": {"classes": {"min_images": 5}}})
    assert validate(config.model_dump(mode="json")) == config


def test_a_class_of_one_image_is_trained_without_a_score(plant: Plant) -> None:
    root = plant(*(f"{name}/{i}.png" for name in "ab" for i in range(8)), "rare/1.png", "rare/2.png", ".DS_Store")
    (root / "a" / "notes.txt").write_text("x")
    dataset = open_dataset(DataConfig(source=str(root), image_size=4))
    assert [dataset.train.ids.count(f"rare/{i}.png") for i in (1, 2)] == [1, 1]
    assert dataset.unused == {"left by systems and editors": 1, NO_IMAGE: 1}
    assert len(dataset.notes) == 1
    assert dataset.notes[0].startswith("val has no images of class rare (2), which is trained without a score: macro")
    small = DataConfig(source=str(root), image_size=4, classes=MinImages(min_images=3))
    assert open_dataset(small).classes == ("a", "b")
    assert open_dataset(small).notes == ()
    assert input_shape(small)[2] == 2


def test_several_classes_without_val_are_named() -> None:
    labels = np.arange(7)
    line = without_val("abcdefg", labels, np.array([0]))
    assert line.startswith("val has no images of 6 classes: b (1), c (1), d (1), e (1), f (1) and 1 more, which are")
    assert without_val("ab", np.array([0, 1]), np.array([1, 0])) == ""


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        (("caf\u00e9", "cafe\u0301"), "caf\u00e9 and cafe\\u0301"),
        (("cat", "cat "), "cat and 'cat '"),
        (("hot dog", "hot  dog", "hot\u00a0dog"), "hot dog and 'hot  dog' and hot\\xa0dog"),
        (("Cat", "cat", "dog"), "Cat and cat"),
    ],
)
def test_names_that_look_alike_are_shown_so_that_one_sees_it(classes: tuple[str, ...], line: str) -> None:
    assert look_alike(classes).startswith(f"classes with names that look alike: {line}; they differ only")
    images = np.arange(6 * len(classes) * 16, dtype=np.uint8).reshape(-1, 4, 4)
    dataset = open_dataset(DataConfig(), source=from_arrays(images, np.repeat(classes, 6)))
    assert dataset.notes == (look_alike(dataset.classes),)


def test_names_that_differ_are_not_alike() -> None:
    assert look_alike(("cat", "cats", "\u65e5\u672c", "\u65e5")) == ""
    assert [spelled(name) for name in ("caf\u00e9", "\u65e5\u672c", "hot dog")] == [
        "caf\u00e9",
        "\u65e5\u672c",
        "hot dog",
    ]


def test_classes_without_an_image_in_train_are_refused_whatever_the_source(plant: Plant) -> None:
    images = np.zeros((6, 8, 8), np.uint8)
    source = from_arrays(images, [*"ababac"], given=["train"] * 4 + ["test"] * 2)
    with pytest.raises(UserError, match=r"has no images of c, of which others, such as 'test/000001' \(test\), are"):
        open_dataset(DataConfig(source="arrays"), source=source)
    assert open_dataset(DataConfig(source="arrays"), source=source, trained=True).classes, "a run of before goes on"
    with pytest.raises(UserError, match="has no images of c"):
        open_dataset(DataConfig(source="arrays", classes=("b", "c")), source=source)
    open_dataset(DataConfig(source="arrays", classes=("a", "b")), source=source)
