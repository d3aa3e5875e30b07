"""Reads and writes checkpoints, each one safetensors file with metadata in its header, atomically. Knows no state.

`last` is the newest, `previous` the one before it (used if `last` is damaged), and `best` that of
the best epoch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from convsmith.errors import UserError, first_line
from convsmith.files import parse_json, sync_folder, write_bytes
from convsmith.nets.tensors import checksum, read_safetensors
from convsmith.records import FORMAT_VERSION, Checkpoint, problem, refuse_newer

LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be read or whose checksum does not match."""


def write(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], best: bool = False) -> None:
    """Write the `last` checkpoint (also as `best`); the former `last` becomes the `previous` one.

    A crash at any point leaves a complete `last` or a complete `previous`.
    """
    reason = problem(Checkpoint, metadata)
    assert reason is None, reason
    dense = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "facts": json.dumps(dict(metadata), allow_nan=False),
        "format": "pt",
        "format_version": str(FORMAT_VERSION),
    }
    header["sha256"] = checksum(dense, header["facts"])
    incoming = folder / "incoming.safetensors"
    write_bytes(incoming, save(dense, header))
    if best:
        _share(incoming, folder / BEST)
    if (folder / LAST).exists():
        _share(folder / LAST, folder / PREVIOUS)
    os.replace(incoming, folder / LAST)
    sync_folder(folder)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata with `format_version`; raises DamagedCheckpointError if it is not as written."""
    try:
        header, tensors = read_safetensors(path)
        edition, text = int(header.get("format_version", 1)), header.get("facts", "")
        if header.get("sha256") != checksum(tensors, text):
            raise ValueError("the checksum does not match")
        facts = parse_json(text)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{path.name}: {first_line(error)}") from None
    refuse_newer(path, edition)
    if (reason := problem(Checkpoint, facts)) is not None:
        raise DamagedCheckpointError(f"{path.name}: {reason}")
    return tensors, facts | {"format_version": edition}


def read_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """The newest intact checkpoint, and a remark if it is not the last one written."""
    remarks = []
    for name in (LAST, PREVIOUS):
        if not (folder / name).exists():
            remarks.append(f"{name}: missing")
            continue
        try:
            tensors, metadata = read(folder / name)
        except DamagedCheckpointError as error:
            remarks.append(str(error))
            continue
        remark = (
            f"a checkpoint is damaged ({'; '.join(remarks)}), so the one before is used, {name}" if remarks else None
        )
        return tensors, metadata, remark
    raise UserError(f"there is no intact checkpoint in '{folder}' ({'; '.join(remarks)}): start a new run")


def _share(source: Path, target: Path) -> None:
    """Give `source` the second name `target`, atomically, by a hard link, or a copy if links are not supported."""
    temporary = target.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
