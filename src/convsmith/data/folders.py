"""Opens a folder of images: class folders alone, or class folders below train/, val/ and test/. Decodes nothing."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

import numpy as np

from convsmith.data.decode import IMAGE_SUFFIXES
from convsmith.data.source import SPLIT_NAMES, Source, Tree, fingerprint_files, readable
from convsmith.errors import UserError


def open_folder(root: Path, tree: Tree) -> Source:
    """The images of `tree` (what `walk` lists below `root`); an image's class is the class folder above it.

    Files that are hidden, lie outside the class folders or lack an image suffix are `unused`.
    """
    splits = _split_folders(root, tree.folders)
    depth = 1 if splits else 0
    records: list[str] = []
    unused: list[str] = []
    for file in tree.files:
        parts = file.path.split("/")
        in_class = len(parts) > depth + 1 and (not splits or parts[0] in splits)
        hidden = parts[-1].startswith(".")
        is_image = in_class and not hidden and PurePosixPath(file.path).suffix.lower() in IMAGE_SUFFIXES
        (records if is_image else unused).append(file.path)
    if not records:
        raise UserError(
            f"no images in class folders below '{root}': expected {root.name}/CLASS/IMAGE "
            f"or {root.name}/train/CLASS/IMAGE with suffixes {', '.join(sorted(IMAGE_SUFFIXES))}"
        )

    parts_of = [path.split("/") for path in records]
    _refuse_empty(root, tree.folders, splits, {"/".join(parts[: depth + 1]) for parts in parts_of})
    given = [splits[parts[0]] if splits else "" for parts in parts_of]
    names = [readable(parts[depth]) for parts in parts_of]
    classes = {split: {name for name, at in zip(names, given, strict=True) if at == split} for split in set(given)}
    trained = sorted(classes["train" if splits else ""])
    for split in sorted(classes.keys() - {"train", ""}):
        _refuse_difference(root, split, classes[split], trained)
    position = {name: i for i, name in enumerate(trained)}
    return Source(
        name=str(root),
        classes=tuple(trained),
        ids=tuple(map(readable, records)),
        labels=np.array([position[name] for name in names], dtype=np.int64),
        given=np.array(given, dtype="<U5"),
        fingerprint=fingerprint_files(root, tree.files),
        read=lambda index: root / records[index],
        unused=tuple(map(readable, unused)),
    )


def _split_folders(root: Path, folders: list[str]) -> dict[str, str]:
    """Maps the names of the top folders to splits; empty if there are class folders alone."""
    found = {name: SPLIT_NAMES[name.casefold()] for name in folders if name.casefold() in SPLIT_NAMES}
    if found and "train" not in found.values():
        # A class may well be called 'test', but then it contains no class folders.
        if any(folder.split("/")[0] in found for folder in folders if "/" in folder):
            raise UserError(f"'{root}' has {' and '.join(sorted(found))}, but no train folder: add train/CLASS/IMAGE")
        return {}
    for split in sorted(set(found.values())):
        names = sorted(name for name, at in found.items() if at == split)
        if len(names) > 1:
            raise UserError(f"'{root}' has the folders {' and '.join(names)} for the {split} split: keep one of them")
    return found


def _refuse_empty(root: Path, folders: list[str], splits: dict[str, str], filled: Collection[str]) -> None:
    for folder in folders:
        parts = folder.split("/")
        is_class = len(parts) == 2 and parts[0] in splits if splits else len(parts) == 1
        if is_class and folder not in filled:
            raise UserError(f"class folder '{root / folder}' contains no images: add some or remove the folder")


def _refuse_difference(root: Path, split: str, classes: set[str], trained: list[str]) -> None:
    unknown, missing = sorted(classes - set(trained)), sorted(set(trained) - classes)
    if unknown or missing:
        differences = [
            f"{what}: {', '.join(names)}" for what, names in (("not in train", unknown), ("missing", missing)) if names
        ]
        raise UserError(
            f"the classes of the {split} split of '{root}' differ from those of train ({'; '.join(differences)}): "
            f"give both the same class folders"
        )
