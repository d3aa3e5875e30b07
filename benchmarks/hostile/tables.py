"""Parquet files that expand, that nest, that claim more rows than they have; and archives given as data."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from hostile import Base, Case, Json


def _table(image: pa.Array, label: pa.Array, metadata: bytes | None = None, **options: Json) -> bytes:
    held = io.BytesIO()
    table = pa.table({"image": image, "label": label})
    if metadata is not None:
        table = table.replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, held, **options)
    return held.getvalue()


def _tables(base: Base) -> Iterator[tuple[str, bytes]]:
    png = base.image.read_bytes()
    numbers = pa.array([0, 1] * 8)
    good = pa.array([png] * 16)
    yield "good", _table(good, numbers)
    for megabytes in (64, 512, 1024):
        big = pa.array([b"\0" * (megabytes << 20)], pa.large_binary())
        yield (
            f"an image of {megabytes} MiB of zeros",
            _table(big, pa.array([0]), compression="zstd", use_dictionary=False),
        )
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array([b"\0" * (1 << 20)]))
    yield "10^4 times an image of 1 MiB, stored once", _table(repeated, pa.array([0, 1] * 5_000))
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["x" * (1 << 20)]))
    yield "10^4 times a label of 1 MiB, stored once", _table(pa.array([png] * 10_000), labels)
    many = pa.array([b""] * 10**7)
    yield "10^7 empty images", _table(many, pa.array([0] * 10**7, pa.int8()))
    yield "10^6 classes", _table(pa.array([b""] * 10**6), pa.array([str(number) for number in range(10**6)]))
    nested: pa.DataType = pa.int64()
    for _ in range(200):
        nested = pa.list_(nested)
    yield "labels 200 lists deep", _table(good, pa.array([None] * 16, nested))
    for kind in (
        pa.float64(),
        pa.string(),
        pa.bool_(),
        pa.date32(),
        pa.decimal128(38),
        pa.binary(),
        pa.timestamp("ns"),
        pa.null(),
        pa.duration("s"),
        pa.uint64(),
    ):
        yield f"labels of type {kind}", _table(good, pa.array([None] * 16, kind))
    yield "labels of NaN", _table(good, pa.array([float("nan")] * 16))
    yield "labels of 2^64 - 1", _table(good, pa.array([2**64 - 1] * 16, pa.uint64()))
    yield "labels with escapes", _table(good, pa.array(["\x1b[2J", "\u202e\r"] * 8))
    yield "labels that are empty", _table(good, pa.array(["", " "] * 8))
    for kind in (pa.struct([("path", pa.string())]), pa.list_(pa.binary()), pa.string(), pa.int64(), pa.null()):
        yield f"images of type {str(kind)[:30]}", _table(pa.array([None] * 16, kind), numbers)
    for path in (
        "/etc/passwd",
        "../../../../etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        str(base.canary),
        "",
        "\0",
        "x.parquet",
    ):
        paths = pa.array(
            [{"bytes": None, "path": path}] * 16, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        )
        yield f"images by the path {path!r}", _table(paths, numbers)
    for names in ("[]", '"x"', "7", "null", '[["x"]]', '["a", "a"]', "[" * 10**5, '["\\u001b[2J", "b"]', '{"0": "a"}'):
        yield (
            f"classes {names[:20]}",
            _table(good, numbers, f'{{"info":{{"features":{{"label":{{"names":{names}}}}}}}}}'.encode()),
        )
    whole = _table(good, numbers)
    for length in (0, 4, 8, len(whole) // 2, len(whole) - 1):
        yield f"the first {length} bytes", whole[:length]
    for value in (0, 2**31 - 1, 2**32 - 1):
        yield f"a footer of {value} bytes", whole[:-8] + value.to_bytes(4, "little") + b"PAR1"
    footer = int.from_bytes(whole[-8:-4], "little")
    for at in range(len(whole) - 8 - footer, len(whole) - 8, 7):  # thrift numbers: rows, sizes, offsets, types
        for new in (0x00, 0x7F, 0xFF):
            yield f"byte {at} is {new:#x}", whole[:at] + bytes([new]) + whole[at + 1 :]
    for at in range(4, len(whole) - 8 - footer, 31):
        yield f"page byte {at}", whole[:at] + b"\xff\xff\xff\xff\x7f" + whole[at + 5 :]


def tables(base: Base) -> Iterator[Case]:
    for name, data in _tables(base):
        yield Case(name, ("data", "check", "x.parquet"), {"x.parquet": data})
        if "byte" not in name:
            yield Case(
                f"{name}, trained",
                ("train", "--data", "x.parquet", "--epochs", "1", "--track.wandb", "off"),
                {"x.parquet": data},
            )
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../../canary", "/tmp/canary", "a/1.png"):
            archive.writestr(name, b"\0" * 10**8)
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.SYMTYPE, "/"
        archive.addfile(link)
    for suffix, data in {".zip": zipped, ".tar.gz": tarred, ".parquet": zipped, ".png": zipped}.items():
        for argv in (
            ("data", "check", "x"),
            ("train", "--data", "x"),
            ("predict", "{run}", "x"),
            ("evaluate", "{run}", "--data", "x"),
        ):
            yield Case(
                f"an archive as x{suffix}, {argv[0]}",
                tuple("x" + suffix if word == "x" else word for word in argv),
                {"x" + suffix: data.getvalue()},
            )
