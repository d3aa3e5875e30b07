"""Each verb is a Python function with the same options, and the other way about."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import convsmith
from convsmith.cli import main, verb_parser, verbs
from convsmith.config import SHORTHANDS, fields, validate
from convsmith.rundir import RunDir
from convsmith.studies.auto_keys import decided
from convsmith.verbs.flags import COMMON, read_flags

#: The functions of verbs that go by another name in Python.
NAMED = {"data": "check_data", "lr-find": "lr_find"}
#: Options of one side alone, with the reason.
ONLY_TYPED = {
    "help": "help(function) tells it in Python",
    "print_config": "convsmith.train takes the config itself",
    "quiet": "Python's predict shows nothing",
    "action": "`data check` is one word in Python",
    "wide": "a result's table has all columns",
}
ONLY_PYTHON = {
    "show": "the terminal always shows the progress",
    "model": "a module of one's own; a name is --model",
    "data": "arrays of one's own; a name is --data",
    "optimizer": "a function of one's own",
    "settings": "they are the flags of the config's sections",
    "listener": "the terminal always shows the progress",
}
#: What an option is called in Python where a flag's name would not do.
ALIASES = {"directory": "run", "directories": "runs", "target": "target"}


def function_of(verb: str) -> Callable[..., Any]:
    name = NAMED.get(verb, verb)
    found = convsmith.Run.__dict__.get(name)
    return found if inspect.isfunction(found) else getattr(convsmith, name)


@pytest.mark.parametrize("verb", verbs())
def test_a_verb_and_its_function_take_the_same_options(verb: str) -> None:
    keys = {key for key, _ in fields()} | {name.replace("-", "_") for name in SHORTHANDS}
    typed = {
        ALIASES.get(action.dest, action.dest)
        for action in verb_parser(verb)._actions
        if action.dest not in keys and action.dest is not argparse.SUPPRESS
    } - ONLY_TYPED.keys()
    function = function_of(verb)
    taken = set(inspect.signature(function).parameters) - ONLY_PYTHON.keys()
    if "self" in taken:  # a method: the run, and where it computes, are those that `load` was given
        taken = taken - {"self"} | {"run", "device"} if "device" in typed else taken - {"self"} | {"run"}
    assert taken == typed


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


WITH_SECTIONS = [verb for verb in verbs() if verb_parser(verb).sections]


@pytest.mark.parametrize("verb", WITH_SECTIONS)
def test_help_shows_what_is_used_most_and_all_of_a_section_on_request(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short = help_of(capsys, verb, "--help").partition("\nexamples:")[0]
    flags = {key: re.compile(rf"^  .*--{re.escape(key)} ", re.M) for key, _ in fields()}
    refused = decided() if verb == "auto" else []
    assert {key for key in flags if flags[key].search(short)} == {*SHORTHANDS.values(), *COMMON}.difference(refused)
    assert short.startswith(f"usage: convsmith {verb} ")
    shown = dict.fromkeys(key.partition(".")[0] for key in flags if key not in refused)
    of_sections = {section: help_of(capsys, verb, "--help", section) for section in shown}
    for key, flag in flags.items():
        if key in refused:
            continue
        assert [name for name, text in of_sections.items() if flag.search(text)] == [key.partition(".")[0]]
        assert f"\n  {key.partition('.')[0]} " in short
    written = "".join([short, *of_sections.values()])
    assert max(map(len, written.splitlines())) <= 80
    assert main([verb, "--help", "trakc"]) == 2
    assert "section 'trakc' does not exist. Did you mean 'track'?" in capsys.readouterr().err


def test_there_is_help_by_section_wherever_settings_are_taken() -> None:
    assert {"train", "crossval", "lr-find", "summary", "ablate", "tune"} <= set(WITH_SECTIONS)


@pytest.mark.parametrize("verb", verbs())
def test_the_examples_of_help_are_commands(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = verb_parser(verb)
    shown = help_of(capsys, verb, "--help")
    for command in parser.examples:
        assert f"\n  {command}\n" in shown
        _, typed, *arguments = shlex.split(command)
        assert typed == verb
        args = parser.parse_all(arguments)
        if parser.sections and not getattr(args, "config", None):
            validate(read_flags(args))
    assert parser.examples or not parser.sections


def test_python_m_convsmith_is_convsmith() -> None:
    done = subprocess.run([sys.executable, "-m", "convsmith", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("convsmith 0.")


def test_runs_lists_what_there_is_with_accuracies_and_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parent / "first_edition", "runs")
    shutil.copytree("runs/finished", "runs/damaged")
    shutil.copytree("runs/crossval", "runs/crossval-failed")
    study = json.loads(Path("runs/crossval-failed/crossval.json").read_text())
    failed = study | {"missing": {"fold 3": "the disk was full"}, "per_fold": study["per_fold"][:2]}
    Path("runs/crossval-failed/crossval.json").write_text(json.dumps(failed))
    Path("runs/damaged/summary.json").write_text("{")
    (Path("runs") / ".new-draft").mkdir()
    found = {row["directory"].name: row for row in convsmith.runs()}
    states = {name: (row["kind"], row["state"]) for name, row in found.items()}
    assert states == {
        "finished": ("run", "finished"),
        "damaged": ("run", "damaged"),
        "stopped": ("run", "stopped"),
        "crossval": ("crossval", "finished"),
        "crossval-stopped": ("crossval", "stopped"),
        "crossval-failed": ("crossval", "incomplete"),
        "ablation": ("ablate", "finished"),
        "tuning": ("tune", "finished"),
    }
    record = json.loads(Path("runs/finished/evaluation-test.json").read_text())
    assert found["finished"]["test_accuracy"] == record["accuracy"]
    assert found["stopped"]["val_accuracy"] is None
    assert found["finished"]["bytes"] > Path("runs/finished/predictions-test.csv").stat().st_size
    with RunDir(Path("runs/stopped")).lock():
        assert {row["directory"].name: row["state"] for row in convsmith.runs()}["stopped"] == "running"
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out
    assert f"{record['accuracy']:.1%}" in lines
    assert "next: convsmith resume runs/" in lines
    assert main(["runs", "nowhere"]) == 2
    assert "there is no folder 'nowhere'" in capsys.readouterr().err
