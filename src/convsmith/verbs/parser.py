"""The parser of a verb: mistakes in one line, and a help that shows the usual flags, or all those of a section."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

from convsmith.config import called_elsewhere
from convsmith.errors import UserError, choose, nearest

HIDDEN = argparse.SUPPRESS  # the help of a flag that no help shows
SETTERS = ("--set", "--override", "--overrides", "--opts")  # other programs' flags for any setting


class HelpFormatter(argparse.HelpFormatter):
    """argparse's help in lines that end between words: a flag or a command stays in one piece."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """``--lr, --optim.lr VALUE``: the value once, and what is quickest to type first."""
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = ", ".join(sorted(action.option_strings, key=len))
        return names if action.nargs == 0 else f"{names} {self._format_args(action, action.metavar or 'VALUE')}"  # type: ignore[arg-type]


class _Help(argparse.Action):
    """``--help``, and ``--help SECTION`` where the verb has sections."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        section = given[1]
        if isinstance(section, str) and section not in parser.sections:
            raise choose("section", section, parser.sections)
        parser._print_message(parser.help_of(section) if section else parser.format_help(), sys.stdout)
        parser.exit()


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors; an unknown flag or choice gets the nearest known one.

    `sections` are the groups of flags that `--help` leaves out but for the `common` ones, by the section's name.
    """

    def __init__(self, *, examples: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": HelpFormatter, **options, "add_help": False})
        self.examples = examples or {}
        self.sections: dict[str, argparse._ArgumentGroup] = {}
        self.common: Sequence[str] = ()
        if options.get("add_help", True):
            self.add_argument("-h", "--help", action=_Help, nargs=0, help="show this text, and stop")

    def add_sections(self, descriptions: Mapping[str, str], common: Sequence[str]) -> None:
        """Groups of flags by section, of which `--help` shows those whose key is `common`."""
        self.sections = {name: self.add_argument_group(f"{name} section", text) for name, text in descriptions.items()}
        self.common = common
        for action in self._actions:
            if isinstance(action, _Help):
                action.nargs, action.metavar = "?", "SECTION"
                action.help = f"show this text, or all flags of a section: {', '.join(descriptions)}"

    def format_help(self) -> str:
        if not self.sections:
            return super().format_help() + self._examples()
        of_sections = [action for group in self.sections.values() for action in group._group_actions]
        own = [action for action in self._actions if action not in of_sections]
        known = {action.dest: action for action in of_sections}
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, (), ())
        formatter.add_text(self.description)
        _add(formatter, "arguments", [action for action in own if not action.option_strings])
        _add(formatter, "flags", [action for action in own if action.option_strings])
        _add(formatter, "settings used most", [known[key] for key in self.common])
        formatter.start_section(f"all settings of a section ({self.prog} --help SECTION)")
        for name, group in self.sections.items():
            count = sum(action.help != HIDDEN for action in group._group_actions)
            shown = argparse.Action([], "", metavar=name, help=f"{group.description} ({count})")
            formatter.add_argument(shown)
        formatter.end_section()
        return formatter.format_help() + self._examples()

    def help_of(self, section: str) -> str:
        """The help that shows all flags of a section."""
        group = self.sections[section]
        formatter = self._get_formatter()
        formatter.add_text(group.description)
        _add(formatter, f"{section} section", group._group_actions)
        return formatter.format_help()

    def _short_usage(self) -> str:
        formatter = self._get_formatter()
        words = [
            formatter._format_args(action, formatter._get_default_metavar_for_positional(action))
            for action in self._get_positional_actions()
        ]
        return " ".join([self.prog, *words, "[--FLAG VALUE ...]"])

    def _examples(self) -> str:
        if not self.examples:
            return ""
        return "\nexamples:\n" + "".join(f"  {typed}\n      {why}\n" for typed, why in self.examples.items())

    def error(self, message: str, section: str = "") -> NoReturn:
        raise UserError(f"{message} (see: {self.prog} --help{section and ' ' + section})")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """A wrong choice gets the nearest right one, as a wrong key does."""
        if action.choices is not None and value not in action.choices:
            what, names = (
                "/".join(action.option_strings) or action.metavar or action.dest,
                list(map(str, action.choices)),
            )
            self.error(f"{what}: '{value}' is not a choice.{nearest(str(value), names)} Choices: {', '.join(names)}")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        if self.sections:  # else argparse would list all of their flags
            self.usage = self._short_usage()
        # Intermixed: `explain RUN --figure pooling cat.png` has positional arguments on both sides of a flag.
        mixed = self._subparsers is None  # argparse cannot combine the two
        args, extra = self.parse_known_intermixed_args(argv) if mixed else self.parse_known_args(argv)
        if extra:
            flag = extra[0].partition("=")[0]
            if not flag.startswith("-"):
                self.error(f"unexpected argument '{flag}'")
            section = flag.lstrip("-").partition(".")[0]
            known = section if section in self.sections else ""
            key = called_elsewhere(flag)
            shown = [name for name, action in self._option_string_actions.items() if action.help != HIDDEN]
            usual = f" Did you mean '--{key}'?" if f"--{key}" in shown else ""
            if self.sections and flag in SETTERS:
                usual = " Each setting is a flag of its own, such as --optim.lr 0.01."
            self.error(f"unknown flag '{flag}'.{usual or nearest(flag, shown)}", known)
        return args


def _add(formatter: argparse.HelpFormatter, title: str, actions: Collection[argparse.Action]) -> None:
    if actions:
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()
