"""Each verb is a Python function with the same options, and the other way about."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import convsmith
from convsmith.cli import verb_parser, verbs
from convsmith.config import SHORTHANDS, fields

#: The functions of verbs that go by another name in Python.
NAMED = {"data": "check_data", "lr-find": "lr_find"}
#: Options of one side alone, with the reason.
ONLY_TYPED = {
    "help": "help(function) tells it in Python",
    "print_config": "convsmith.train takes the config itself",
    "action": "`data check` is one word in Python",
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
