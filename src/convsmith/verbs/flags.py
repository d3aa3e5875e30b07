"""The arguments that verbs share: a config from preset, file and flags, and the folder of runs."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convsmith.config import (
    REPEATED,
    SHORTHANDS,
    Layer,
    RunConfig,
    Settings,
    choices,
    core_type,
    fields,
    flag_layer,
    settings_of,
    word,
)
from convsmith.data.config import READING, DataConfig, reading
from convsmith.errors import UserError, quoted
from convsmith.verbs.parser import HIDDEN, Parser

if TYPE_CHECKING:
    from convsmith.data.sources import Source
    from convsmith.events import Note
    from convsmith.rundir import RunDir

#: The keys that --help shows, besides those with a shorthand; --help SECTION shows all of a section.
COMMON = ("data.labels", "data.image_size", "data.on_error", "augment.hflip", "transfer.weights", "track.wandb")


def add_config_arguments(parser: argparse.ArgumentParser, file: bool = True, refused: Collection[str] = ()) -> None:
    """[--section.key VALUE ...] and the shorthands; with `file` also [CONFIG.yaml] [--preset NAME].

    Keys that the verb has `refused` are parsed, so that it can say why, but no help shows them.
    """
    if file:
        parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="a config file: a run's config.yaml")
        parser.add_argument("--preset", metavar="NAME", help="start from a preset (see: convsmith presets)")
    assert isinstance(parser, Parser)
    taken = {key.partition(".")[0] for key, _ in fields() if key not in refused}
    sections = {name: info.description or "" for name, info in RunConfig.model_fields.items() if name in taken}
    parser.add_sections(sections, [key for key in (*SHORTHANDS.values(), *COMMON) if key not in refused])
    short = {key: f"--{name}" for name, key in SHORTHANDS.items()}
    for key, info in fields():
        group = parser.sections.get(key.partition(".")[0], parser)
        words = [info.description or "", f"one of {', '.join(map(str, choices(info)))}" if choices(info) else ""]
        default = info.get_default()
        text = "; ".join(part for part in words if part)
        is_flag = core_type(info) is bool
        group.add_argument(
            f"--{key}",
            *([short[key]] if key in short else []),
            dest=key,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=HIDDEN if key in refused else f"{text} [{word(default)}]".replace("%", "%%").strip(),
            action="append" if key in REPEATED else "store",
            **({"nargs": "?", "const": "true"} if is_flag else {}),  # type: ignore[arg-type]
        )


def add_reading_arguments(parser: argparse.ArgumentParser, what: str = "", keys: Sequence[str] = READING) -> None:
    """--data and the keys that say how it is read, for verbs of a trained model; `what` tells the help of --data."""
    for key in keys:
        info = dict(fields())[f"data.{key}"]
        names = ["--data", "--data.source"] if key == "source" else [f"--data.{key}"]
        said = what if key == "source" else f"{info.description}{' (of --data)' if what else ''}".replace("%", "%%")
        parser.add_argument(
            *names,
            dest=f"data.{key}",
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=said,
            action="append" if f"data.{key}" in REPEATED else "store",
        )


def read_reading(args: argparse.Namespace) -> DataConfig | None:
    """The data section that --data and its keys give; None where they are left out. Raises UserError."""
    settings = read_flags(args).get("data")
    return reading(settings) if settings else None


def read_moved(args: argparse.Namespace, run: RunDir) -> Source | None:
    """The run's own images where --data says that they have moved; None where it is left out. Raises UserError."""
    data = read_reading(args)
    if data is None:
        return None
    from convsmith.prediction.evaluate import moved_source

    return moved_source(run, data)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="name of the run directory; default: data, model and a number")
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="folder of the run directories [runs]")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    known = choices(dict(fields())["train.device"])
    parser.add_argument("--device", choices=known, default="auto", help="where the network computes [auto]")


def add_jobs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="number of runs at a time [1]")
    parser.add_argument("--backend", default="local", metavar="NAME", help="local, or ray (a cluster) [local]")


def read_settings(args: argparse.Namespace) -> Settings:
    """What config file, preset and flags set; a mistake in them is told at once, before the data are looked at."""
    flags, file = _flags(args), Path(args.config) if args.config else None
    if file is not None and not file.exists():
        for source in typed if isinstance(typed := flags.get("data.source", []), list) else [typed]:
            if Path(whole := f"{source} {file}").exists():
                raise UserError(f"config file '{file}' does not exist: put '{whole}' in quotes, --data {quoted(whole)}")
    settings = settings_of(args.preset, file, flags)
    _ = settings.config
    return settings


def print_config(settings: Settings) -> int:
    """Print the config that would be trained, with what the data choose; returns the exit code."""
    from convsmith.terminal import say, say_lines

    if settings.preset or settings.layer:  # else nothing is to be looked at, and no import delays the answer
        from convsmith.recipes import decide

        notes: list[Note] = []
        config = decide(settings, listener=notes.append)
        for note in notes:
            say(note.text, error=True)
    else:
        config = settings.config
    say_lines(config.to_yaml())
    return 0


def read_flags(args: argparse.Namespace) -> Layer:
    """The settings of the flags alone, for verbs whose config has a file of its own."""
    return flag_layer(_flags(args))


def given_words(args: argparse.Namespace, leave_out: Collection[str] = ()) -> list[str]:
    """The config file, preset and flags that the user gave, for a command that repeats them."""
    words = [args.config] if args.config else []
    words += ["--preset", args.preset] if args.preset else []
    return words + setting_words(args, leave_out)


def setting_words(args: argparse.Namespace, leave_out: Collection[str] = ()) -> list[str]:
    """The settings that the user gave as flags, for a command that repeats them."""
    short = {key: name for name, key in SHORTHANDS.items()}
    return [
        word
        for key, value in _flags(args).items()
        if key not in leave_out
        for one in (value if isinstance(value, list) else [value])
        for word in (f"--{short.get(key, key)}", one)
    ]


def _flags(args: argparse.Namespace) -> dict[str, str | list[str]]:
    known = {key for key, _ in fields()}
    return {key: value for key, value in vars(args).items() if key in known}
