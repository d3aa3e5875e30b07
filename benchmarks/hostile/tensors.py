"""safetensors files whose headers lie, as weights, in a run's model, and as its checkpoint."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile import Base, Case, Json
from hostile.pickles import TRAIN, _unfinished


def _file(header: Json, content: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def _entry(dtype: Json = "F32", shape: Json = (2,), offsets: Json = (0, 8)) -> Json:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _headers() -> Iterator[tuple[str, bytes]]:
    eight = b"\0" * 8
    for length in (0, 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1, 100_000_001):
        yield f"a header of {length} bytes", _file({"weight": _entry()}, eight, length)
    for cut in range(9):
        yield f"the first {cut} bytes", _file({"weight": _entry()}, eight)[:cut]
    for offsets in (
        (0, 9),
        (0, 2**63),
        (0, 2**64),
        (8, 0),
        (-8, 0),
        (0, -1),
        (4, 12),
        (0,),
        (0, 8, 16),
        "08",
        None,
        (0.0, 8.0),
        (True, 8),
        (10**30, 10**30 + 8),
        [[0], [8]],
    ):
        yield f"offsets {offsets}", _file({"weight": _entry(offsets=offsets)}, eight)
    for shape in (
        (2**31, 2**31),
        (2**63,),
        (2**64,),
        (10**30,),
        (-2,),
        (2, 0),
        (0,),
        (),
        (2**32, 2**32, 0),
        "2",
        None,
        (2.0,),
        (True,),
        [1] * 10**5,
        [[2]],
        (10**12,),
    ):
        yield f"shape {str(shape)[:40]}", _file({"weight": _entry(shape=shape)}, eight)
    for dtype in (
        "F16",
        "BF16",
        "I64",
        "U64",
        "BOOL",
        "C64",
        "F4",
        "F8_E4M3",
        "object",
        "O",
        "pickle",
        "",
        None,
        7,
        [],
        "f32",
        "F128",
        "F8_E8M0",
        "F6_E2M3",
    ):
        yield f"dtype {dtype}", _file({"weight": _entry(dtype=dtype)}, eight)
    yield "overlapping tensors", _file({"a": _entry(), "b": _entry(offsets=(4, 12))}, eight + b"\0" * 4)
    yield "the same bytes twice", _file({"a": _entry(), "b": _entry()}, eight)
    yield "a hole between tensors", _file({"a": _entry(), "b": _entry(offsets=(16, 24))}, b"\0" * 24)
    yield "bytes after the tensors", _file({"a": _entry()}, b"\0" * 800)
    one = json.dumps(_entry())
    yield "a key twice", _file(f'{{"a": {one}, "a": {one}}}'.encode(), eight)
    yield "lists 10^5 deep", _file(b"[" * 10**5 + b"]" * 10**5)
    yield "objects 10^5 deep", _file(b'{"a":' * 10**5 + b"1" + b"}" * 10**5)
    yield "10^6 empty tensors", _file({str(number): _entry(shape=[0], offsets=(0, 0)) for number in range(10**6)})
    yield "metadata of 10^6 keys", _file({"__metadata__": {str(number): "" for number in range(10**6)}})
    for meta in (
        None,
        [],
        7,
        "x",
        {"a": 1},
        {"a": None},
        {"a": {"b": "c"}},
        {"sha256": "0" * 64},
        {"convsmith": "[" * 10**5},
        {"convsmith": "7"},
        {"convsmith": "{"},
        {"convsmith": '{"sha256": 7}'},
        {"facts": "[" * 10**5},
        {"convsmith": '{"format_version": 1e999}'},
        {"format_version": "9" * 5000},
        {"format_version": "x"},
    ):
        yield f"metadata {str(meta)[:40]}", _file({"__metadata__": meta, "weight": _entry()}, eight)
    for name in ("../../../etc/passwd", "\x1b[2J", "", "__class__", "a" * 10**6, "\u202e", "x\ny", "\ud800"):
        yield f"a tensor named {name[:20]!r}", _file({name: _entry()}, eight)
    yield "bytes that are not UTF-8", _file(b'{"\xff\xfe": 1}')
    yield "numbers of 10^6 digits", _file(b'{"a": ' + b"9" * 10**6 + b"}")
    yield "no JSON", _file(b"not JSON")
    yield "an empty object", _file({})
    yield "a list", _file([])
    yield "JavaScript's NaN", _file(b'{"a": NaN}')


def safetensors(base: Base) -> Iterator[Case]:
    from convsmith.prediction.model_file import read_model
    from convsmith.training.checkpoint import read_newest
    from convsmith.transfer.pretrained import read_tensors

    for number, (name, data) in enumerate(_headers()):
        through = number % 10 == 0  # the verb itself; else the function by which it reads
        argv = (*TRAIN, "--transfer.weights", "x.safetensors")
        direct = None if through else read_tensors
        yield Case(f"{name}, as weights", argv, {"x.safetensors": data}, direct=direct)
        argv, model = ("predict", "{run}", "{image}"), "model/model.safetensors"
        yield Case(
            f"{name}, in a run", argv, in_run={model: data}, direct=None if through else _in(read_model, "model")
        )
        both = {"checkpoints/last.safetensors": data, "checkpoints/previous.safetensors": data}
        direct = None if through else _in(read_newest, "checkpoints")
        yield Case(f"{name}, as checkpoints", ("resume", "{run}"), in_run=both, make=_unfinished, direct=direct)


def _in(read: Callable[[Path], object], part: str) -> Callable[[Path], object]:
    return lambda run: read(run / part)
