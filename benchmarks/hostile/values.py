"""Texts and values that no file of ours has, and how they are put in the place of what a file has."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from convsmith.plainyaml import parse_yaml, to_yaml

TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "a blank": b" ",
    "a newline": b"\n",
    "a word": b"word",
    "null": b"null",
    "true": b"true",
    "a number": b"1",
    "a text": b'"text"',
    "a list": b"[]",
    "a list of lists": b"[[], [1]]",
    "an object": b"{}",
    "an object of null": b'{"a": null}',
    "a list of objects": b"[{}]",
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 50_000,
    "closed nested lists": b"[" * 900 + b"]" * 900,
    "NaN": b"NaN",
    "a large float": b"1e999",
    "10^30": b"1" + b"0" * 30,
    "5,000 digits": b"9" * 5_000,
    "equal keys": b'{"a": 1, "a": 2}',
    "half an object": b'{"a": 1',
    "two values": b"{} {}",
    "a byte-order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "Latin-1": b'{"caf\xe9": 1}',
    "a surrogate": b'{"a": "\\ud800"}',
    "a NUL": b'{"a": "\0"}',
    "NULs": b"\0" * 1_000,
    "bytes": bytes(range(256)),
    "a newer edition": b'{"format_version": 99}',
    "an odd edition": b'{"format_version": "two"}',
    "escapes": b'\x1b[31m{"\x1b]0;a\x07": 1}',
    "an alias bomb": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *c]\n",
    "a tag": b"!!python/object/apply:os.system [ls]",
    "a broken tag": b"a: !!bool x",
    "a header": b"epoch,train_loss\n",
    "a short row": b"epoch,train_loss\n1\n",
    "a long row": b"epoch,train_loss\n1,2,3,4\n",
    "an odd row": b'epoch,"train_loss\n1,2\r3\n',
}
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**62, 10**30, 1.5, -0.5, 1e308, "", "x", "a\x1b[31m\n", "../../x", "\0",
    [], [None], [[1]], {}, {"a": {}},
)  # fmt: skip


Version = tuple[str, Callable[[], bytes]]  # what is hostile about a version of a file, and a function that makes it


def mutated(file: Path) -> Iterator[Version]:
    """The hostile versions of a file."""
    content = file.read_bytes()
    middle = len(content) // 2
    others = {"cut in half": content[:middle], "one byte": content[:middle] + b"\xff" + content[middle + 1 :]}
    for name, text in (TEXTS | others).items():
        yield name, partial(bytes, text)
    if file.suffix in (".json", ".yaml"):
        yield from odd_values(file)


def odd_values(file: Path, every: int = 1) -> Iterator[Version]:
    """Versions of a JSON or YAML file with one value replaced by an odd one, or missing; `every` skips most of them."""
    content = file.read_text(encoding="utf-8")
    value, write = (json.loads(content), json.dumps) if file.suffix == ".json" else (parse_yaml(content, "it"), to_yaml)

    def made(path: tuple[Any, ...], odd: Any) -> bytes:
        return write(replaced(value, path, odd)).encode("utf-8", "replace")

    for number, (path, odd) in enumerate(itertools.product(unlike(value), (*VALUES, GONE))):
        if number % every == 0:
            yield f"{'.'.join(map(str, path))} = {'gone' if odd is GONE else repr(odd)}", partial(made, path, odd)


GONE = object()


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each part of a value, the root's first."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths_of(inner, (*path, key))


def unlike(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each part but the root; of a list, and of objects that are alike, only those in the first one."""
    if above:
        yield above
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        keys = {tuple(part) for part in value.values() if isinstance(part, dict)}
        alike = len(keys) == 1 and all(isinstance(part, dict) for part in value.values())
        inner = list(value.items())[: 1 if alike else None]
    elif isinstance(value, list):
        inner = list(enumerate(value))[:1]
    for key, part in inner:
        yield from unlike(part, (*above, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of `value` with `new` at `path`, or without what is there."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    inner = replaced(copy[path[0]], path[1:], new)
    if inner is GONE:
        del copy[path[0]]
    else:
        copy[path[0]] = inner
    return copy
