"""Reads and writes YAML with the plain values of version 1.2. Knows no configs."""

from __future__ import annotations

import re
from typing import Any

import yaml

from convsmith.errors import UserError
from convsmith.terminal import lines_of


class _Loader(yaml.SafeLoader):
    """Loads YAML with the plain values of version 1.2 (its core schema, 10.3.2), and refuses duplicate keys.

    `off`, `no`, 1:30 and 2024-05-01 are strings, 010 is ten and 1e-3 is a number, whereas PyYAML itself reads them as
    false, false, ninety, a date, eight and a string.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
     list("-+.0123456789")),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


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


def parse_yaml(text: str, what: str) -> Any:
    """Parse `text` to plain values; if it is not valid YAML, a UserError names `what` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error)
        hint = " (indent with spaces)" if "'\\t'" in problem else ""
        raise UserError(f"{what}{where} is not valid YAML: {problem}{hint}") from None
    except (ValueError, RecursionError) as error:  # for example a tag !!int before a word, or deeply nested brackets
        raise UserError(f"{what} is not valid YAML: {error}") from None
