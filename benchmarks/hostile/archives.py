"""torch.export archives (.pt2): each field replaced by each trick. torch compiles their names into source code."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from hostile import Base, Case, Content, Json
from hostile.pickles import TRAIN
from hostile.values import paths_of, replaced


def _kind(path: tuple[str | int, ...]) -> tuple[str, ...]:
    """The place of a field: fields of the same place, in other nodes and of other tensors, are treated alike."""
    named = ("tensor_values", "config", "metadata", "opset_version", "range_constraints")
    return tuple(
        "[]" if isinstance(step, int) or (at and path[at - 1] in named) else step for at, step in enumerate(path)
    )


def _changed(base: Base, file: str, text: str, path: tuple[str | int, ...], trick: Json, key: bool = False) -> bytes:
    """The archive with one field (or key) of one of its JSON files replaced."""
    value = json.loads(text)
    if key:
        *above, old = path
        at = value
        for step in above:
            at = at[step]
        at[trick] = at.pop(old)
    else:
        value = replaced(value, path, trick)
    return _rewritten(base.archive, {f"/{file}": json.dumps(value).encode()})


def _rewritten(archive: Path, change: dict[str, bytes], add: dict[str, bytes] | None = None) -> bytes:
    """The archive with the content of members (by the end of their names) changed, and members added."""
    held = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(held, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = next((data for end, data in change.items() if name.endswith(end)), old.read(name))
            new.writestr(name, content)
        for name, content in (add or {}).items():
            new.writestr(name, content, zipfile.ZIP_DEFLATED)
    return held.getvalue()


def _opened(path: Path) -> object:
    module = torch.export.load(path).module()
    return module(torch.zeros(2, 8, 8, 1, dtype=torch.uint8))


def _tricks(base: Base, old: Json) -> Iterator[Json]:
    call = f"__import__('os').system({base.touch!r})"
    yield from (f"{old}={call}", f"x):\n    {call}\ndef f(y", call, "os.system", "torch.ops.aten.from_file.default")
    yield from (f"../../../../../..{base.canary}", {"as_expr": {"expr_str": call}}, 10**30, None)


def archives(base: Base) -> Iterator[Case]:
    with zipfile.ZipFile(base.archive) as archive:
        inner = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".json")}
        top = archive.namelist()[0].split("/")[0]
    number = 0
    for file, text in inner.items():
        value, seen = json.loads(text), set()
        for path in paths_of(value):
            if not path or (kind := _kind(path)) in seen:
                continue
            seen.add(kind)
            old = value
            for step in path:
                old = old[step]
            for trick in _tricks(base, old if isinstance(old, str) else path[-1]):
                what = f"{file} {'.'.join(map(str, path))}: {str(trick)[:60]!r}"
                yield from _ways(what, partial(_changed, base, file, text, path, trick), number)
                number += 1
            if isinstance(path[-1], str):
                trick = next(_tricks(base, path[-1]))
                what = f"{file} key {'.'.join(map(str, path))}"
                yield from _ways(what, partial(_changed, base, file, text, path, trick, key=True), number)
                number += 1
    called = f"__import__('os').system({base.touch!r})"
    for what, name in {"input": "pixels", "output of a node": "permute", "parameter": "p_model_head_weight"}.items():
        everywhere = inner["model.json"].replace(json.dumps(name), json.dumps(f"{name}={called}"))
        yield from _ways(
            f"every {what}'s name", _rewritten(base.archive, {"/models/model.json": everywhere.encode()}), 0
        )
    yield from _ways(
        "an operator that writes", _rewritten(base.archive, {"/models/model.json": _from_file(base, inner)}), 0
    )
    call = b"cos\nsystem\n(V" + base.touch.encode() + b"\ntR."
    for name in (
        "data/constants/constant_0",
        "data/constants/custom_obj_0",
        "data/sample_inputs/model.pt",
        "constants.pkl",
    ):
        yield from _ways(
            f"a pickle as {name}", _rewritten(base.archive, {f"/{name}": call}, {f"{top}/more/{name}": call}), 0
        )
    for name in (f"../../../../../..{base.canary}", str(base.canary), f"{top}/../{base.canary.name}"):
        yield from _ways(f"a member named {name}", _rewritten(base.archive, {}, {name: b"x"}), 0)
    zeros = {f"{top}/data/weights/weight_99": bytes(256 << 20)}
    yield from _ways("a member of 256 MiB of zeros", partial(_rewritten, base.archive, {}, zeros), 0)


def _from_file(base: Base, inner: dict[str, str]) -> bytes:
    """The first operator becomes aten.from_file with shared=True, which creates and writes a file."""
    value = json.loads(inner["model.json"])
    node = value["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.aten.from_file.default"
    node["inputs"] = [
        {"name": "filename", "arg": {"as_string": str(base.canary)}, "kind": 1},
        {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
        {"name": "size", "arg": {"as_int": 1}, "kind": 1},
    ]
    return json.dumps(value).encode()


def _ways(what: str, data: Content, number: int) -> Iterator[Case]:
    """`predict` by the name that such files have, and others by a name that is opened; all of them for number 0."""
    armed = _opened if number % 10 == 0 else None
    yield Case(what, ("predict", "x.pt2", "{image}"), {"x.pt2": data}, armed=armed)
    others = [
        ("as .onnx", ("predict", "x.onnx", "{image}"), "x.onnx"),
        ("as .pt", (*TRAIN, "--transfer.weights", "x.pt"), "x.pt"),
        ("as .safetensors", (*TRAIN, "--transfer.weights", "x.safetensors"), "x.safetensors"),
        ("served", ("serve", "x.pt2"), "x.pt2"),
        ("explained", ("explain", "x.pt2", "{image}"), "x.pt2"),
        ("as data", ("data", "check", "x.pt2"), "x.pt2"),
        ("as weights", (*TRAIN, "--transfer.weights", "x.pt2"), "x.pt2"),
    ]
    for place, (how, argv, name) in enumerate(others):
        if number == 0 or number % (20 * len(others)) == 20 * place:
            yield Case(f"{what}, {how}", argv, {name: data})
