"""The classes of a source: which are left out, and which have names that look alike. Decodes nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from convsmith.data.config import MinImages
from convsmith.data.source import Labels, Source, unused_files
from convsmith.errors import UserError, choose
from convsmith.terminal import spelled

LEFT_OUT = "of classes left out"
MOST_NAMED = 5  # classes in a sentence


def with_classes(source: Source, wanted: tuple[str, ...] | MinImages | None) -> Source:
    """`source` with the wanted classes alone, in its order; the images of the others are `unused`. Raises UserError."""
    if wanted is None:
        return source
    if isinstance(wanted, MinImages):
        counts = np.bincount(source.labels, minlength=len(source.classes))
        labels = np.flatnonzero(counts >= wanted.min_images)
        if len(labels) < 2:
            raise UserError(
                f"data.classes leaves fewer than two classes of {source.name}: the two largest have "
                f"{' and '.join(map(str, np.sort(counts)[::-1][:2]))} images, so lower min_images {wanted.min_images}"
            )
    else:
        if unknown := [name for name in wanted if name not in source.classes]:
            raise choose("data.classes", unknown[0], map(spelled, source.classes))
        labels = np.array([label for label, name in enumerate(source.classes) if name in wanted])
    rows = np.flatnonzero(np.isin(source.labels, labels))
    others = np.setdiff1d(np.arange(len(source)), rows)
    if not len(others):
        return source
    part = source.at(rows)
    return replace(
        part,
        classes=tuple(source.classes[label] for label in labels),
        labels=np.searchsorted(labels, part.labels),
        unused=unused_files(source.unused, {LEFT_OUT: [source.ids[row] for row in others]}),
    )


def refuse_untrained(source: Source) -> None:
    """Raise UserError if images of val or test are of classes of which the source's train split has none."""
    is_train = np.isin(source.given, ["train", ""])
    absent = np.setdiff1d(source.labels, source.labels[is_train])
    if len(absent):
        row = int(np.flatnonzero(source.labels == absent[0])[0])
        names = ", ".join(spelled(source.classes[label]) for label in absent[:MOST_NAMED])
        more = f" and {len(absent) - MOST_NAMED:,} more" if len(absent) > MOST_NAMED else ""
        raise UserError(
            f"the train split of {source.name} has no images of {names}{more}, of which others, such as "
            f"'{source.ids[row]}' ({source.given[row]}), are: move some to train, or leave them out with data.classes"
        )


def look_alike(classes: Sequence[str]) -> str:
    """A sentence on classes whose names differ only by case, blanks or Unicode form; '' if there are none."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    pairs = [" and ".join(map(spelled, names)) for names in alike.values() if len(names) > 1]
    if not pairs:
        return ""
    return (
        f"classes with names that look alike: {'; '.join(pairs)}; they differ only by case, blanks or Unicode form: "
        "if each pair is one class, give it one name"
    )


def without_val(classes: Sequence[str], train: Labels, val: Labels) -> str:
    """A sentence on classes of which val has no image; '' if there are none. `train` and `val` are labels."""
    counts = np.bincount(train, minlength=len(classes))
    absent = np.setdiff1d(train, val)
    if not len(absent) or not len(val):
        return ""
    names = [f"{spelled(classes[label])} ({counts[label]:,})" for label in absent[:MOST_NAMED]]
    more = f" and {len(absent) - MOST_NAMED:,} more" if len(absent) > MOST_NAMED else ""
    one = len(absent) == 1
    return (
        f"val has no images of {'class' if one else f'{len(absent):,} classes:'} {', '.join(names)}{more}, which "
        f"{'is' if one else 'are'} trained without a score: macro precision, recall and F1 count "
        f"{'it' if one else 'each'} as 0, balanced accuracy and AUROC leave {'it' if one else 'them'} out; "
        "--data.classes 'min_images: N' takes no such classes"
    )
