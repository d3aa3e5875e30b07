"""Files: what is none is refused at once, nothing is written through links, and kills leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from convsmith import files, records
from convsmith.config import read_config
from convsmith.data.arrow import open_columns
from convsmith.data.audit import check_data
from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.decode import DecodeError, decode, read_header
from convsmith.data.parquet import open_parquet
from convsmith.data.source import File
from convsmith.data.tables import read_table
from convsmith.errors import UserError
from convsmith.export import export
from convsmith.figures.page import render
from convsmith.nets.tensors import read_safetensors
from convsmith.prediction.evaluation import read_predictions
from convsmith.prediction.exported import open_exported
from convsmith.prediction.output import refuse_out
from convsmith.report.compare import compare
from convsmith.rundir import RunDir
from convsmith.studies.config import read_study
from convsmith.tracking import csv
from convsmith.transfer.pretrained import read_tensors

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="other systems have no pipes among their files")

PAGE = Path(records.__file__).with_name("figures") / "templates" / "base.html"
RULES = DecodeRules(channels=3)
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "decode": ("a.png", lambda path: decode(path, RULES)),
    "read_header": ("a.png", read_header),
    "config": ("a.yaml", read_config),
    "study": ("a.yaml", read_study),
    "json": ("a.json", files.read_json),
    "lines": ("a.jsonl", lambda path: records.read_lines(path, records.TestAccess)),
    "table": ("a.csv", lambda path: read_table("data.labels", path)),
    "arrow": ("a.arrow", open_columns),
    "parquet": (
        "a.parquet",
        lambda path: open_parquet(path.parent, [File(path.name, 0, 0)], path.parent / "cache", DataConfig()),
    ),
    "safetensors": ("a.safetensors", read_tensors),
    "pth": ("a.pth", read_tensors),
    "onnx": ("a.onnx", open_exported),
    "metrics": ("metrics.csv", csv.read),
    "predictions": ("predictions-val.csv", lambda path: read_predictions(path, ["a", "b"])),
    "checkpoint": ("last.safetensors", read_safetensors),
}


@pytest.fixture
def _never_waits() -> Iterator[None]:
    """Reading a pipe without a writer would wait for ever."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 30)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@needs_pipes
@pytest.mark.usefixtures("_never_waits")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_no_reader_waits_for_what_is_no_file(reader: str, kind: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    path = tmp_path / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises((UserError, DecodeError, OSError), match=f"it is a {kind}, not a file"):
        read(path)


@needs_pipes
def test_folders_sockets_and_files_that_were_exchanged_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IsADirectoryError):
        files.open_file(tmp_path)
    monkeypatch.chdir(tmp_path)  # macOS takes no address of more than 104 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        with pytest.raises(files.NotAFileError, match="a socket"):
            files.open_file(tmp_path / "s")
    (tmp_path / "file").touch()
    before = (tmp_path / "file").stat()
    (tmp_path / "file").unlink()
    os.mkfifo(tmp_path / "file")
    monkeypatch.setattr(Path, "stat", lambda path, **_: before)  # it was a file a moment ago
    with pytest.raises(files.NotAFileError, match="a pipe"):
        files.open_file(tmp_path / "file")


def test_links_to_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    assert files.read_text(tmp_path / "link") == "text"


@pytest.mark.parametrize("target", ["outside", "/dev/null", "missing"])
def test_nothing_is_appended_through_a_link(target: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "log.txt").symlink_to(target)
    with pytest.raises(UserError, match=r"log\.txt' is a link"):
        files.open_to_append(tmp_path / "log.txt")
    assert (tmp_path / "outside").read_text() == "mine"
    assert not (tmp_path / "missing").exists()


def test_nothing_is_appended_to_a_link_that_was_put_there_a_moment_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "log.txt").symlink_to("outside")
    file = (tmp_path / "outside").stat()
    monkeypatch.setattr(Path, "lstat", lambda path: file)
    with pytest.raises(UserError, match="nothing is written through it"):
        files.open_to_append(tmp_path / "log.txt")


def test_the_other_name_of_a_file_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "backup").write_text("one\n")
    os.link(tmp_path / "backup", tmp_path / "log.txt")
    with files.open_to_append(tmp_path / "log.txt") as file:
        file.write(b"two\n")
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n"
    assert (tmp_path / "backup").read_text() == "one\n"


def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "report.html").symlink_to("outside")
    files.write_text(tmp_path / "report.html", "ours")
    assert (tmp_path / "outside").read_text() == "mine"
    assert (tmp_path / "report.html").read_text() == "ours"


OUTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "csv": ("p.csv", refuse_out, "id,predicted,confidence,p_a,p_b\nx.png,a,0.9,0.9,0.1\n"),
    "json": ("p.json", refuse_out, '[{"id": "x.png", "predicted": "a", "confidence": 0.9}]'),
    "check": (
        "c.json",
        lambda out: check_data(DataConfig(source="nowhere/"), out=out),
        '{"source": "s", "files": [], "verdicts": {}, "counts": {}}',
    ),
    "compare": (
        "c.html",
        lambda out: compare([Path("nowhere/a"), Path("nowhere/b")], out),
        render(PAGE, {"title": "of an earlier edition"}),
    ),
    "onnx": ("m.onnx", lambda out: export(RunDir(Path("nowhere")), "onnx", out), "classes preprocessing input"),
    "torch": ("m.pt2", lambda out: export(RunDir(Path("nowhere")), "torch", out), "convsmith.json"),
}


@needs_pipes
@pytest.mark.parametrize("kind", OUTS)
def test_out_replaces_nothing_but_what_the_same_command_wrote(kind: str, tmp_path: Path) -> None:
    name, write, ours = OUTS[kind]
    path = tmp_path / name
    photo = b"\x89PNG\r\n\x1a\nclasses"
    evaluated, mine = b"id,label,predicted,confidence,p_a\nx,a,a,1,1\n", b"id,predicted,confidence,note\nx,a,1,odd\n"
    for content in (photo, evaluated, mine, b"my notes\n", b"[]", b"{}", b"<!doctype html><title>mine</title>"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}' exists and is not an? .*: choose another --out"):
            write(path)
        assert path.read_bytes() == content
    for content in (ours, ""):
        path.write_text(content)
        try:
            write(path)  # gets past the check and stumbles over what is nowhere
        except UserError as error:
            assert "nowhere" in str(error)  # noqa: PT017
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="exists and is not"):
        write(path)
    with pytest.raises(UserError, match=r"must end in \.|is a folder"):
        write(tmp_path / "photo.png")


KILLED = """
import os, signal, sys
from pathlib import Path
from convsmith.files import written_whole
with written_whole(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


def test_the_next_write_clears_what_a_kill_left_and_leaves_what_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    subprocess.run([sys.executable, "-c", KILLED, path, "SIGKILL"], check=False)
    (tmp_path / ".a.json.4711.tmp").touch()  # of the first edition
    (tmp_path / ".a.json.of.another.tmp").touch()
    assert len(list(tmp_path.glob(".a.json.*.tmp"))) == 3
    with files.written_whole(path) as one, files.written_whole(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one"
    assert {left.name for left in tmp_path.iterdir()} == {".a.json.of.another.tmp", "a.json"}
