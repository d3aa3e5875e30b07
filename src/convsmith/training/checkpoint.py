"""Checkpoints: one safetensors file each, the plain facts in its header, never half written.

`last` is the newest, `previous` the one before it (the fall-back where `last` is damaged), `best` the one of
the best epoch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from convsmith.errors import UserError
from convsmith.files import sync_folder, write_bytes
from convsmith.nets.tensors import checksum
from convsmith.records import FORMAT_VERSION, refuse_newer

LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"


class DamagedCheckpointError(Exception):
    """A checkpoint that is unreadable or whose checksum does not fit."""


def write(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], best: bool = False) -> None:
    """Make this the `last` checkpoint (and `best`), the former `last` the `previous` one.

    A crash at any point leaves a whole `last` or a whole `previous`.
    """
    dense = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {"facts": json.dumps(dict(facts), allow_nan=False), "format": "pt", "format_version": str(FORMAT_VERSION)}
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
    """Tensors and facts, `format_version` among them; DamagedCheckpointError where the file is not what was written."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{path.name}: {error}") from None
    if header.get("sha256") != checksum(tensors, header.get("facts", "")):
        raise DamagedCheckpointError(f"{path.name}: checksum does not fit")
    edition = int(header.get("format_version", 1))
    refuse_newer(path, edition)
    return tensors, json.loads(header["facts"]) | {"format_version": edition}


def read_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """The newest sound checkpoint, and a remark where it is not the last one written."""
    remarks = []
    for name in (LAST, PREVIOUS):
        if not (folder / name).exists():
            remarks.append(f"{name}: missing")
            continue
        try:
            tensors, facts = read(folder / name)
        except DamagedCheckpointError as error:
            remarks.append(str(error))
            continue
        remark = f"checkpoint damaged ({'; '.join(remarks)}): going on from the one before, {name}" if remarks else None
        return tensors, facts, remark
    raise UserError(f"no sound checkpoint in '{folder}' ({'; '.join(remarks)}): start the run anew")


def _share(source: Path, target: Path) -> None:
    """Give `source` the second name `target`, atomically: a hard link, or a copy where links are not known."""
    temporary = target.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
