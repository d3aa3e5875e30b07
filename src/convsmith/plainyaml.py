"""Reads and writes YAML with the plain values of version 1.2. Knows no configs.

What is read may come from anybody, so its size is bounded before it is built: by characters, by levels, and by values,
where an alias counts as what it stands for. Of the tags, only those of plain values are known.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from convsmith.errors import UserError, first_line
from convsmith.files import BITS, DEEPEST, integer, open_file
from convsmith.terminal import lines_of

LARGEST = 200_000  # characters; a config has 2,000
MOST = 10_000  # values; a config has 100


class _TooMuch(ConstructorError):
    """A text that is larger than it should be; `problem` says how."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(None, None, problem, mark)


class _Loader(yaml.SafeLoader):
    """Loads YAML with the plain values of version 1.2 (its core schema, 10.3.2), and refuses duplicate keys.

    `off`, `no`, 1:30 and 2024-05-01 are strings, 010 is ten and 1e-3 is a number, whereas PyYAML itself reads them as
    false, false, ninety, a date, eight and a string.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values: dict[yaml.Node, int] = {}  # how many values each node has
        self._above: list[int] = []  # the numbers of values of the nodes around the present one, so far
        self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node and count its values: as if aliases were copies, since whoever reads them follows them."""
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if len(self._above) >= DEEPEST:
            raise _TooMuch(f"more than {DEEPEST} levels", mark)
        self._above.append(1)
        node = super().compose_node(parent, index)
        values = self._above.pop()
        if node is None:
            return None
        if is_alias:
            self._aliases += 1
            if node not in self._values:
                raise _TooMuch("an alias stands for a value that it is in", mark)
            values = self._values[node]
        self._values[node] = values
        if self._above:
            self._above[-1] += values
        if sum(self._above) > MOST:
            copied = f", since {self._aliases:,} aliases count as what they stand for" if self._aliases else ""
            raise _TooMuch(f"{sum(self._above):,} values so far, but at most {MOST:,} are read{copied}", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        """A scalar with one of the tags of `_PLAIN`, which it may have by its looks or because the text says so."""
        word, kind = self.construct_scalar(node), node.tag.rpartition(":")[2]
        if not _PLAIN[kind].fullmatch(word):
            raise ConstructorError(None, None, f"'{word}' is not a value of !!{kind}", node.start_mark)
        if kind == "null":
            return None
        if kind == "bool":
            return word.lower() == "true"
        if kind == "float":
            return float(word.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if (value := integer(word)) is None:
            raise ConstructorError(None, None, f"{word} is an integer of more than {BITS} bits", node.start_mark)
        return value

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        text.encode()  # an escape such as \ud800 is no character
        return text

    def refuse_tag(self, node: yaml.Node) -> Any:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise ConstructorError(None, None, f"the tag {tag} is not known: leave it out", node.start_mark)


_PLAIN: dict[str, re.Pattern[str]] = {}
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
     list("-+.0123456789")),
):  # fmt: skip
    _PLAIN[_kind] = re.compile(_pattern)
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.yaml_constructors = {
    "tag:yaml.org,2002:str": _Loader.construct_text,
    "tag:yaml.org,2002:seq": _Loader.construct_yaml_seq,
    "tag:yaml.org,2002:map": _Loader.construct_yaml_map,
    **{f"tag:yaml.org,2002:{_kind}": _Loader.construct_plain for _kind in _PLAIN},
    None: _Loader.refuse_tag,
}


class _Dumper(yaml.SafeDumper):
    """Quotes strings that either version of YAML would read as another type."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, ()), *_Loader.yaml_implicit_resolvers.get(first, ())]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def to_yaml(values: Any) -> str:
    """Plain values as YAML, which `parse_yaml` reads back unchanged; hidden characters are written as escapes."""
    text = _dumped(values, allow_unicode=True)
    return text if lines_of(text) == text else _dumped(values, allow_unicode=False)


def _dumped(values: Any, allow_unicode: bool) -> str:
    dumped: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode)
    return dumped


def read_yaml(path: Path) -> Any:
    """The plain values in a file; UserError if it is not YAML or too large, OSError if it cannot be read."""
    with open_file(path) as file:
        data = file.read(4 * LARGEST + 1)  # a character has at most 4 bytes
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        if len(data) <= 4 * LARGEST:
            raise UserError(f"'{path}' is not a YAML file (it is not UTF-8)") from None
        text = data.decode("utf-8", "replace")  # cut within a character, and too long in any case
    return parse_yaml(text, f"'{path}'")


def parse_yaml(text: str, what: str) -> Any:
    """Parse `text` to plain values; if it is not valid YAML, a UserError names `what` and the line."""
    if len(text) > LARGEST:
        raise UserError(f"{what} is not read as YAML: it has more than {LARGEST:,} characters, which no config has")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        if isinstance(error, _TooMuch):
            raise UserError(f"{what}{where} is not read as YAML: {error.problem}") from None
        problem = str(getattr(error, "problem", None) or first_line(error))
        hint = " (indent with spaces)" if "'\\t'" in problem else ""
        raise UserError(f"{what}{where} is not valid YAML: {problem}{hint}") from None
    except (ValueError, OverflowError) as error:  # for example an escape that is no character
        raise UserError(f"{what} is not valid YAML: {first_line(error)}") from None
