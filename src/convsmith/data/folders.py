"""Opens a folder of images: class folders alone, or class folders in folders of splits. Decodes nothing.

Around the class folders there may be single folders, as archives make them when they are unpacked. What could be read
in more than one way is refused.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from convsmith.data.decode import IMAGE_SUFFIXES, has_image_suffix
from convsmith.data.source import (
    NO_IMAGE,
    OUTSIDE,
    Record,
    Source,
    Tree,
    fingerprint_files,
    readable,
    split_of,
    unused_files,
)
from convsmith.data.tables import SUFFIXES as TABLES
from convsmith.errors import UserError
from convsmith.terminal import spelled

SHOWN = 4  # names in a message, before "and N more"
PICTURES = frozenset(("images", "image", "imgs", "img", "jpegimages"))
UNLABELLED = frozenset(("unknown", "unlabelled", "unlabeled", "all"))
_NUMBER, _PART = re.compile(r"\d+"), re.compile(r"(^|[\W_])(part|batch|chunk|shard|images?)([\W_]|$)")
MASKS = frozenset(("masks", "mask", "labels", "label", "annotations", "gt", "groundtruth", "segmentation", "targets"))


@dataclass
class _Folder:
    """The images of a folder itself, by name, and the folders below it that hold images."""

    path: str
    images: list[str] = field(default_factory=list)
    folders: dict[str, _Folder] = field(default_factory=dict)

    def all(self) -> Iterator[str]:
        """The paths of all images in it and below it."""
        yield from (f"{self.path}/{name}".lstrip("/") for name in self.images)
        for folder in self.folders.values():
            yield from folder.all()

    @property
    def is_divided(self) -> bool:
        """Whether its images lie in folders below it."""
        return bool(self.folders) and not self.images


def open_folder(root: Path, tree: Tree, read: Callable[[str], Record]) -> Source:
    """The images of `tree` (what `walk` lists below `root`); an image's class is the class folder above it.

    `read` returns the image at a path of the tree. Files that lie outside the class folders or lack an image suffix are
    `unused`.
    """
    images = [file for file in tree.files if has_image_suffix(file.path)]
    top = _unwrapped(_folders_of(file.path for file in images), split_of)
    splits = _splits_of(root, top)
    records: list[tuple[str, str, str]] = []  # path, class, split
    for split, folder in splits.items():
        for name, below in folder.folders.items():
            records += ((path, readable(name), split) for path in below.all())
    tables = [file.path for file in tree.files if file.path.lower().endswith(TABLES)]
    names = {name for _, name, _ in records}
    if len(names) < 2 and (not names or tables or names & PICTURES):
        raise _no_classes(root, tables)
    records.sort()

    found = {split: {name for _, name, at in records if at == split} for split in splits}
    trained = found["train" if "train" in found else ""]
    for split, folder in splits.items():
        _refuse_empty(root, folder, tree.folders)
        _refuse_difference(root, split, found[split], trained)
    position = {name: i for i, name in enumerate(sorted(trained))}
    used = {path for path, _, _ in records}
    outside = [file.path for file in images if file.path not in used]
    others = [file.path for file in tree.files if not has_image_suffix(file.path)]
    return Source(
        name=str(root),
        classes=tuple(position),
        ids=tuple(readable(path) for path, _, _ in records),
        labels=np.array([position[name] for _, name, _ in records], dtype=np.int64),
        given=np.array([split for _, _, split in records], dtype="<U5"),
        fingerprint=fingerprint_files(root, (file for file in images if file.path in used)),
        read=lambda index: read(records[index][0]),
        unused=unused_files(tree.ignored, {NO_IMAGE: others, OUTSIDE: outside}),
    )


def _folders_of(paths: Iterable[str]) -> _Folder:
    """The folders that hold the files at these relative paths."""
    top = _Folder("")
    for path in paths:
        folder = top
        *above, name = path.split("/")
        for part in above:
            folder = folder.folders.setdefault(part, _Folder(f"{folder.path}/{part}".lstrip("/")))
        folder.images.append(name)
    return top


def _unwrapped(folder: _Folder, names: Callable[[str], object]) -> _Folder:
    """The folder in which folders begin to lie side by side; `names` tells of a folder that it is no mere wrapper."""
    while len(folder.folders) == 1:
        name, below = next(iter(folder.folders.items()))
        if names(name) or not below.is_divided:
            break
        folder = below
    return folder


def _splits_of(root: Path, top: _Folder) -> dict[str, _Folder]:
    """The folder that holds the class folders of each split; of '' alone if there are no folders of splits."""
    named = {name: split for name in top.folders if (split := split_of(name))}
    divided = [name for name in named if top.folders[name].is_divided]
    others = [name for name in top.folders if name not in named]
    if not named or (others and not divided and len(set(named.values())) == 1):  # a class may be called 'train'
        _refuse_same_classes(root, top)
        return {"": top}
    where = root / top.path
    classes_too = any(len(top.folders[name].folders) > 1 for name in others)
    if others and (classes_too or not divided or len(set(named.values())) == 1):
        looks = f"{listed(named)} {'looks like a split' if len(named) == 1 else 'look like splits'}"
        raise UserError(
            f"in '{where}', {looks}, but {listed(others)} {'does' if len(others) == 1 else 'do'} not: move it away, "
            f"or write the split into its name; if all of them are classes, add {_by_folder(top)}"
        )
    folders: dict[str, list[str]] = {}
    for name, split in named.items():
        folders.setdefault(split, []).append(name)
    for split, names in sorted(folders.items()):
        if len(names) > 1:
            raise UserError(f"'{where}' has the folders {' and '.join(names)} for the {split} split: keep one of them")
    if "train" not in folders:
        raise UserError(f"'{where}' has {' and '.join(sorted(named))}, but no train folder: add train/CLASS/IMAGE")
    splits = {"train": _unwrapped(top.folders[folders["train"][0]], lambda _: False)}
    for split in ("val", "test"):
        if split in folders:
            folder = _unwrapped(top.folders[folders[split][0]], splits["train"].folders.__contains__)
            if split == "test" and not folder.folders.keys() & splits["train"].folders.keys() and _is_flat(folder):
                whole = top.folders[folders[split][0]]
                wrappers = PurePosixPath(folder.path).relative_to(whole.path).parts
                if all(map(_names_no_class, (*wrappers, *folder.folders))):
                    continue  # the test images of a competition, which have no labels
                folder = whole
            splits[split] = folder
    if "val" in splits and splits["train"].folders and _is_flat(splits["val"], splits["train"].folders):
        raise UserError(
            f"the images in '{root / splits['val'].path}' lie in no class folders: put them into folders of their "
            f"classes, name the table of their labels with --data.labels, or train without them, "
            f"--data {shlex.quote(str(root / splits['train'].path))}"
        )
    for folder in splits.values():
        _refuse_same_classes(root, folder)
    return splits


def _names_no_class(name: str) -> bool:
    """Whether a folder of this name holds images of all classes."""
    return bool(split_of(name)) or name.casefold() in PICTURES | UNLABELLED


def _is_flat(folder: _Folder, classes: Collection[str] = ()) -> bool:
    """Whether the images of a split lie in one folder that is not of one of `classes`."""
    return len(folder.folders) <= 1 and not folder.folders.keys() & set(classes)


def _refuse_same_classes(root: Path, top: _Folder) -> None:
    """Raise UserError if the folders in `top` hold the same classes, are images and masks, or parts of one folder."""
    where = root / top.path
    bare = {_NUMBER.sub("", name).casefold() for name in top.folders}
    if len(top.folders) > 1 and len(bare) == 1 and _PART.search(next(iter(bare))):
        raise UserError(
            f"in '{where}', {listed(top.folders)} look like parts of one set, not like classes: give a table of the "
            f"labels or a pattern of the names with --data.labels; or, if these are the classes, add {_by_folder(top)}"
        )
    homes: dict[str, list[str]] = {}
    for name, folder in top.folders.items():
        if folder.is_divided:
            for below in folder.folders:
                homes.setdefault(below, []).append(name)
    shared = [below for below, names in homes.items() if len(names) > 1]
    if any(
        len(folder.folders) > 1 or (split_of(below) and len(folder.folders[below].folders) > 1)
        for below in shared
        for folder in map(top.folders.__getitem__, homes[below])
    ):
        names = list(dict.fromkeys(name for below in shared for name in homes[below]))
        one, other = (shlex.quote(str(where / name)) for name in names[:2])
        raise UserError(
            f"in '{where}', {listed(names)} hold folders of the same names, {listed(shared)}: name one of them, "
            f"--data {one}, or several, --data {one} --data {other}; or, if {listed(names)} are the classes, add "
            f"{_by_folder(top)}"
        )
    inner = [
        f"{name}/{below}"
        for name, folder in top.folders.items()
        for below in folder.folders
        if split_of(below) and len(folder.folders[below].folders) > 1
    ]
    if inner:
        sources = " ".join(f"--data {shlex.quote(str(where / name))}" for name in inner[:2])
        raise UserError(
            f"in '{where}', {listed(inner)} {'looks like a split' if len(inner) == 1 else 'look like splits'} with "
            f"classes below: name what you mean, as in {sources}; or, if {listed(top.folders)} are the classes, add "
            f"{_by_folder(top)}"
        )
    pictures = [name for name in top.folders if name.casefold() in PICTURES]
    masks = [name for name in top.folders if name.casefold() in MASKS]
    if pictures and masks:
        stems = [{PurePosixPath(path).stem for path in top.folders[name].all()} for name in (pictures[0], masks[0])]
        if stems[0] & stems[1]:
            raise UserError(
                f"in '{where}', '{pictures[0]}' and '{masks[0]}' hold images of the same names, as images and their "
                f"masks do: name the images, --data {shlex.quote(str(where / pictures[0]))}, and where their labels "
                f"are, --data.labels; or, if these are the classes, add {_by_folder(top)}"
            )


def _by_folder(top: _Folder) -> str:
    """The flag that takes the classes from the folders in `top`, whatever is below them."""
    return f"--data.labels '^{re.escape(top.path + '/' if top.path else '')}([^/]+)/'"


def _no_classes(root: Path, tables: Sequence[str]) -> UserError:
    missing = f"no images in class folders below '{root}'"
    likely = [table for table in tables if split_of(PurePosixPath(table).name) == "train" or "label" in table] or tables
    if len(likely) == 1 and (name := readable(likely[0])):
        return UserError(f"{missing}: if {name} holds their labels, add --data.labels {shlex.quote(name)}")
    table = f" (such as {readable(likely[0])})" if likely else ""
    return UserError(
        f"{missing}: expected {root.name}/CLASS/IMAGE or "
        f"{root.name}/train/CLASS/IMAGE with suffixes {', '.join(sorted(IMAGE_SUFFIXES))}; if the labels stand in a "
        f"table{table} or in the names of the files, give --data.labels"
    )


def _refuse_empty(root: Path, folder: _Folder, folders: Iterable[str]) -> None:
    for path in folders:
        above, _, name = path.rpartition("/")
        if above == folder.path and name not in folder.folders:
            raise UserError(f"class folder '{root / path}' contains no images: add some or remove the folder")


def _refuse_difference(root: Path, split: str, classes: set[str], trained: set[str]) -> None:
    unknown, missing = sorted(classes - trained), sorted(trained - classes)
    if unknown:  # a class that val or test lacks has no score there, which `train` says
        differences = [
            f"{what}: {listed(names)}" for what, names in (("not in train", unknown), ("missing", missing)) if names
        ]
        raise UserError(
            f"the classes of the {split} split of '{root}' differ from those of train ({'; '.join(differences)}): "
            f"give both the same class folders"
        )


def listed(names: Collection[str]) -> str:
    """A few names for a sentence: "a, b, c and 5 more"."""
    shown = [spelled(readable(name)) for name in names][: SHOWN if len(names) > SHOWN + 1 else None]
    left = len(names) - len(shown)
    return ", ".join(shown) + (f" and {left:,} more" if left else "")
