"""Opens data sets of the Hugging Face hub by name (``hf:NAME``), through `datasets`, which downloads them once.

They are read from the Arrow files in the library's cache. Where these lie is remembered, so that a later start needs
neither the library nor a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convsmith.data.arrow import PARQUET
from convsmith.data.config import DataConfig
from convsmith.data.parquet import open_addresses, open_rows
from convsmith.data.places import remote
from convsmith.data.source import File, Source, split_of
from convsmith.errors import UserError, missing_extra
from convsmith.files import read_json, write_json
from convsmith.network import unreachable

PREFIX = "hf:"

Files = dict[str, list[str]]  # split of the hub -> its Arrow files


def open_hub(source: str, cache: Path, config: DataConfig) -> Source:
    """The data set ``hf:NAME`` or ``hf:NAME:CONFIG``. Raises UserError if it cannot be had or read.

    Its splits are those of the hub, by their names; others, such as 'unsupervised', are `unused`.
    """
    name, _, subset = source.removeprefix(PREFIX).partition(":")
    if not name or name.count("/") > 1 or name.startswith(("/", ".")):
        raise UserError(f"data.source '{source}' names no data set: give {PREFIX}NAME or {PREFIX}OWNER/NAME[:CONFIG]")
    if os.path.exists(name):  # which the library would read instead
        raise UserError(f"data.source '{source}' is of the hub, but '{name}' lies here: for that, use --data ./{name}")
    if config.stream:
        return _streamed(source, name, subset, cache, config)
    place = cache / "hub" / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}.json"
    files = _remembered(place)
    if files is None:
        files = _loaded(source, name, subset)
        with contextlib.suppress(OSError):  # a failure only makes the next start take longer
            write_json(place, files)
    named = {split: split_of(split) for split in files}
    used = {split: home for split, home in named.items() if home} or named
    paths = {Path(path): used[split] for split in used for path in files[split]}
    root = Path(os.path.commonpath([path.parent for path in paths]))
    listed = [File.at(path, root) for path in paths]
    unused = {"splits other than train, val and test": files.keys() - used.keys()}
    return open_rows(source, root, listed, list(paths.values()), cache, config, unused)


def _streamed(source: str, name: str, subset: str, cache: Path, config: DataConfig) -> Source:
    """The data set without a copy: the Parquet files that `datasets` finds on the hub, read there."""
    datasets, address = _library(source, name)
    if reason := unreachable(address):
        raise UserError(f"'{source}' cannot be streamed, since the hub cannot be reached ({reason}): go online")
    with _quiet(datasets):
        try:
            found = datasets.load_dataset_builder(name, subset or None).config.data_files or {}
        except Exception as error:  # the library raises errors of many kinds
            raise UserError(f"'{source}' cannot be opened: {' '.join(str(error).split())[:400]}") from error
    files = {str(split): [str(file) for file in part] for split, part in found.items()}
    addresses = [file for part in files.values() for file in part]
    if not addresses or not all(file.lower().endswith(PARQUET) for file in addresses):
        raise UserError(
            f"'{source}' is not kept as Parquet on the hub, which alone is streamed: leave data.stream out, and it is "
            "downloaded"
        )
    used = {split: split_of(split) for split in files if split_of(split)} or dict.fromkeys(files, "")
    unused = {"splits other than train, val and test": files.keys() - used.keys()}
    homes = {file: home for split, home in used.items() for file in files[split]}
    return open_addresses(source, remote(list(homes)), list(homes.values()), cache, config, unused)


def _library(source: str, name: str) -> tuple[Any, str]:
    """The package `datasets`, and the address of the hub. Raises UserError where it must not open a data set."""
    try:
        import datasets
        from huggingface_hub.constants import ENDPOINT
    except ImportError:
        raise missing_extra("datasets", "hub") from None
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise UserError("datasets before 4.0 may run code that a data set brings: pip install 'convsmith[hub]'")
    if name in getattr(datasets.packaged_modules, "_PACKAGED_DATASETS_MODULES", ()):  # they read the working folder
        raise UserError(f"data.source '{source}' is a reader of files, no data set: give the files, --data DIR")
    return datasets, ENDPOINT


def _remembered(place: Path) -> Files | None:
    """The files of a data set that was opened before; None if some are gone."""
    try:
        files = read_json(place)
        there = all(os.path.isfile(path) for paths in files.values() for path in paths)
    except (UserError, OSError, AttributeError, TypeError):
        return None
    return files if files and there else None


def _loaded(source: str, name: str, subset: str) -> Files:
    """Have `datasets` load a data set: from its cache, or else from the hub if that answers."""
    datasets, address = _library(source, name)
    offline = datasets.config.HF_HUB_OFFLINE
    with _quiet(datasets):
        try:
            datasets.config.HF_HUB_OFFLINE = True
            loaded = datasets.load_dataset(name, subset or None)
        except Exception as kept:  # the library raises errors of many kinds
            if reason := "HF_HUB_OFFLINE is set" if offline else unreachable(address):
                is_absent = "OfflineModeIsEnabled" in str(kept)
                said = "it is not there" if is_absent else " ".join(str(kept).split())[:400]
                raise UserError(
                    f"'{source}' cannot be read from the cache of datasets, {datasets.config.HF_DATASETS_CACHE} "
                    f"({said}), and the hub cannot be reached ({reason}): go online, copy that cache from another "
                    "machine, or give a folder of Parquet"
                ) from kept
            datasets.config.HF_HUB_OFFLINE = False
            try:
                loaded = datasets.load_dataset(name, subset or None)
            except Exception as error:
                raise UserError(f"'{source}' cannot be loaded: {' '.join(str(error).split())[:400]}") from error
        finally:
            datasets.config.HF_HUB_OFFLINE = offline
    files = {str(split): [str(file["filename"]) for file in part.cache_files] for split, part in loaded.items()}
    if not any(files.values()):
        raise UserError(f"'{source}' has no files of images: is it a data set of image classification?")
    return files


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Neither bars nor warnings of the libraries."""
    from huggingface_hub.utils import logging as hub_logging

    loggers: Mapping[Any, int] = {logging: logging.get_verbosity() for logging in (datasets.utils.logging, hub_logging)}
    bars = datasets.is_progress_bar_enabled()
    try:
        for logging in loggers:
            logging.set_verbosity(logging.CRITICAL)
        datasets.disable_progress_bars()
        yield
    finally:
        for logging, level in loggers.items():
            logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
