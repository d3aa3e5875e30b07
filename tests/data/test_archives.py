"""Archives: read as the folder that was packed is, and refused with the reason where they are not what they seem."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convsmith.data import archives
from convsmith.data.config import DataConfig
from convsmith.data.dataset import open_dataset
from convsmith.data.source import HIDDEN, NO_IMAGE, SYSTEM, Source
from convsmith.data.sources import open_source, with_absolute_paths
from data import small

Plant = Callable[..., Path]
FORMATS = {"zip": ".zip", "tar": ".tar", "gztar": ".tar.gz", "bztar": ".tar.bz2", "xztar": ".tar.xz"}
PATHS = [f"{split}/{name}/{number}.png" for split in ("train", "test") for name in "ab" for number in range(6)]


def opened(path: Path | str, **settings: str) -> Source:
    return open_source(DataConfig(source=str(path), **settings))  # type: ignore[arg-type]


def refused(path: Path | str, **settings: str) -> str:
    def read_all() -> None:
        source = opened(path, **settings)
        for row in range(len(source)):
            source.read(row)

    return small.refused(read_all)


def zipped(path: Path, *members: str | tuple[zipfile.ZipInfo | str, bytes], **kind: int) -> Path:
    with zipfile.ZipFile(path, "w", **kind) as file:  # type: ignore[arg-type]
        for member in members:
            file.writestr(*((member, b"x" * 9) if isinstance(member, str) else member))
    return path


def tarred(path: Path, *members: str | tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = 9 if info.isreg() else 0
            file.addfile(info, io.BytesIO(b"x" * 9))
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_archive_is_read_as_its_folder_is(plant: Plant, tmp_path: Path, form: str, wrapped: bool) -> None:
    root = plant(*PATHS)
    for name in ("notes.txt", "train/a/.hidden.png", "._1.png"):
        (root / name).write_text("x")
    where = {"root_dir": root.parent, "base_dir": "data"} if wrapped else {"root_dir": root}
    path = Path(shutil.make_archive(str(tmp_path / "packed"), form, **where))  # type: ignore[arg-type]
    folder = opened(root)
    for _ in range(2):  # listed, then remembered
        source = opened(path)
        assert (source.classes, source.labels.tolist()) == (folder.classes, folder.labels.tolist())
        assert source.given.tolist() == folder.given.tolist()
        prefix = "data/" if wrapped else ""
        assert source.ids == tuple(prefix + name for name in folder.ids)
        assert source.unused == {
            reason: (prefix + name,)
            for reason, name in ((NO_IMAGE, "notes.txt"), (HIDDEN, "train/a/.hidden.png"), (SYSTEM, "._1.png"))
        }
        rows = [*range(len(source)), 3, 0]
        assert [source.read(row) for row in rows] == [(root / sorted(PATHS)[row]).read_bytes() for row in rows]


def test_pixels_and_splits_are_those_of_the_folder_and_a_config_repeats_them(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(*(f"{name}/{number}.png" for name in "ab" for number in range(10)))
    shutil.make_archive(str(tmp_path / "packed"), "gztar", root)
    monkeypatch.chdir(tmp_path)
    config = with_absolute_paths(DataConfig(source="packed.tar.gz"))
    assert config.source == str(tmp_path / "packed.tar.gz")
    packed, plain = open_dataset(config), open_dataset(DataConfig(source=str(root)))
    assert packed.splits_record() == plain.splits_record()
    monkeypatch.setattr(archives, "_unpacked", None)  # all is remembered
    np.testing.assert_array_equal(open_dataset(packed.config).train.gather([0, 1]), plain.train.gather([0, 1]))


def test_a_folder_in_an_archive_and_labels_in_it(plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(*PATHS, *(f"flat/{number}.png" for number in range(12)))
    (root / "labels.csv").write_text("image,label\n" + "".join(f"flat/{n}.png,{'xy'[n % 2]}\n" for n in range(12)))
    path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
    assert opened(path / "train").ids == tuple(f"{name}/{number}.png" for name in "ab" for number in range(6))
    assert "has no folder 'nowhere'" in refused(path / "nowhere")
    labelled = opened(path, labels="labels.csv")
    assert labelled.classes == ("x", "y")
    assert len(labelled) == 12
    assert opened(path, labels=r"flat/(\d)").classes == tuple("0123456789")
    dataset = open_dataset(with_absolute_paths(DataConfig(source=str(path), labels="labels.csv")))
    assert dataset.config.labels == str(path / "labels.csv")
    (tmp_path / "labels.csv").write_text("image,label\n0.png,z\n1.png,w\n")
    monkeypatch.chdir(tmp_path)  # where another table of that name lies
    assert open_dataset(dataset.config).hash == dataset.hash
    assert "nor in" in refused(path, labels="other.csv")
    assert "line 2 of data.labels" in refused(
        zipped(tmp_path / "b.zip", "a/1.png", "b/2.png", ("l.csv", b"image,label\n../../x.png,a\n")), labels="l.csv"
    )


LINK = tarfile.TarInfo("a/link.png")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "/etc/passwd"
HARD = tarfile.TarInfo("a/hard.png")
HARD.type, HARD.linkname = tarfile.LNKTYPE, "a/1.png"
FIFO = tarfile.TarInfo("a/fifo.png")
FIFO.type = tarfile.FIFOTYPE
ZIP_LINK = zipfile.ZipInfo("a/link.png")
ZIP_LINK.create_system, ZIP_LINK.external_attr = 3, 0o120777 << 16


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "C:/x.png", "a\\..\\..\\x.png"])
def test_paths_that_leave_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    for path in (zipped(tmp_path / "p.zip", "a/1.png", "b/1.png", name), tarred(tmp_path / "p.tar", "a/1.png", name)):
        assert "a path that leaves the archive: it is not read" in refused(path)


def test_links_devices_and_other_archives_are_refused(tmp_path: Path) -> None:
    for number, info in enumerate((LINK, HARD, FIFO)):
        assert "a link or a device" in refused(tarred(tmp_path / f"{number}.tar", "a/1.png", "b/1.png", info))
    assert "a link or a device" in refused(zipped(tmp_path / "l.zip", "a/1.png", "b/1.png", (ZIP_LINK, b"/etc/passwd")))
    assert "holds another archive, 'more.zip': unpack it" in refused(zipped(tmp_path / "n.zip", "a/1.png", "more.zip"))
    assert "holds 'train.parquet': unpack it" in refused(zipped(tmp_path / "q.zip", "train.parquet"))
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    assert "an archive of another kind than .zip and .tar: unpack it" in refused(tmp_path / "x.rar")
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(tmp_path / "d.zip", "a/1.png", "b/1.png", "a/1.png")
    assert "holds 'a/1.png' twice" in refused(tmp_path / "d.zip")


def test_bombs_are_refused_by_what_they_declare_and_by_what_they_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FREE_GROWTH", 2**20)
    zeros = bytes(2**22)
    declared = zipped(tmp_path / "b.zip", ("a/1.bmp", zeros), ("b/1.bmp", zeros), compression=zipfile.ZIP_DEFLATED)
    assert re.search("is a bomb: its .* bytes become 8,388,608 or more, in 2 files", refused(declared))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(bytes(2**24)))
    assert "is a bomb" in refused(tmp_path / "b.tar.gz")
    monkeypatch.setattr(archives, "MOST_FILES", 2)
    assert "in 3 files" in refused(zipped(tmp_path / "m.zip", "a/1.png", "b/1.png", "b/2.png"))
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**32  # attributes of 4 GB, which tarfile would read at once
    (tmp_path / "h.tar").write_bytes(header.tobuf() + bytes(2**16))
    assert "a header is too large" in refused(tmp_path / "h.tar")


def test_encrypted_and_damaged_archives_are_one_line(tmp_path: Path) -> None:
    good = zipped(tmp_path / "g.zip", "a/1.png", "b/1.png").read_bytes()
    encrypted = good.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    assert encrypted != good
    (tmp_path / "e.zip").write_bytes(encrypted)
    assert "is encrypted: unpack it with its password" in refused(tmp_path / "e.zip")
    flipped = good.replace(b"xxxx", b"xyxx")
    plain = tarred(tmp_path / "g.tar", "a/1.png", "b/1.png").read_bytes()
    packed = tarred(tmp_path / "g.tar.gz", "a/1.png", "b/1.png", mode="w:gz").read_bytes()
    damaged = [
        *(("d.zip", content) for content in (b"", b"PK", good[: len(good) // 2], good[:-30], flipped)),
        *(("d.tar", content) for content in (b"", b"tar", plain[:700], plain[:1024], plain[:1024] + b"x" * 512)),
        *(("d.tar.gz", content) for content in (b"", b"gz", packed[: len(packed) // 2], packed[:-5])),
        *(("d.tar.xz", content) for content in (b"", packed)),
        *(("d.tar.bz2", content) for content in (b"", packed)),
    ]
    for name, content in damaged:
        (tmp_path / name).write_bytes(content)
        assert re.search(r"d\.\S+' cannot be read \(", refused(tmp_path / name)), (name, content[:20])


def header(kind: bytes, content: bytes = b"", name: str = "x", size: int | None = None) -> bytes:
    """A member of a .tar; a `size` that is not that of the content is written in base 256."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size is not None:
        block[124:136] = (size % 2**96).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def pax(*attributes: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header(kind, b"".join(b"%02d %s\n" % (len(one) + 4, one) for one in attributes))


FILE = header(tarfile.REGTYPE, b"x" * 9, "a/1.png")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *((FILE + header(tarfile.REGTYPE, name="b/1.png", size=size), "is negative") for size in (-512, -1, -(2**40))),
        (header(tarfile.XHDTYPE, size=-512), "is negative"),
        (FILE + header(tarfile.REGTYPE, name="b/1.png", size=2**40), "its end is missing"),
        (FILE + header(tarfile.REGTYPE, name="b/1.png", size=2**80), "cannot be read ("),
        (pax(b"size=-1") + FILE, "a size is no number"),
        (pax(b"size=x") + FILE, "a size is no number"),
        (header(tarfile.XHDTYPE, b"1" * 2**19) + FILE, "a header is damaged"),  # which took a regex of tarfile hours
        (header(tarfile.XHDTYPE, b"03 " * 2**17 + b"=") + FILE, "a header is damaged"),
        (header(tarfile.XHDTYPE, b"99 path=a\n") + FILE, "a header is damaged"),
        (pax(*[b"k=v"] * 2000, kind=tarfile.XGLTYPE) + FILE, "a header is damaged"),
        (pax(b"path=a/x\0y.png") + FILE, "a name holds a NUL"),
        (pax(b"path=../x.png") + FILE, "a path that leaves the archive"),
        (header(tarfile.GNUTYPE_LONGNAME, b"/etc/x.png\0") + FILE, "a path that leaves the archive"),
        (pax(b"GNU.sparse.major=1") + FILE, "a link or a device"),
        (header(tarfile.GNUTYPE_SPARSE, name="a/2.png"), "a link or a device"),
    ],
)
def test_a_tar_that_lies_about_its_members_is_refused_at_once(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "h.tar").write_bytes(content + bytes(10240))
    for _ in range(2):
        assert said in refused(tmp_path / "h.tar")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names_in_a_tar_are_those_that_tarfile_reads(tmp_path: Path, form: int) -> None:
    long = 3 if form == tarfile.USTAR_FORMAT else 30
    names = [f"{'folder of classes/' * long}{name}/é\udc80{number}.png" for name in "ab" for number in range(2)]
    with tarfile.open(tmp_path / "l.tar", "w", format=form, pax_headers={"comment": "all"}) as file:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 600 + number
            file.addfile(info, io.BytesIO(bytes([number]) * 1200))
    with tarfile.open(tmp_path / "l.tar") as file:
        assert file.getnames() == names
        expected = [archives.Member(info.name, info.size, info.offset_data) for info in file]
    with (tmp_path / "l.tar").open("rb") as content:
        assert archives._listed(tmp_path / "l.tar", content) == expected
