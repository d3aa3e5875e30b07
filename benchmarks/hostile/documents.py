"""YAML, JSON and CSV that name code, that grow when they are read, and that are of other types than expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from hostile import Base, Case, Json
from hostile.pickles import _unfinished
from hostile.values import paths_of, replaced

SHORT = "--epochs 1 --data.limit 60 --track.wandb off".split()


def _tags(base: Base) -> Iterator[tuple[str, str]]:
    call, path = f"__import__('os').system({base.touch!r})", base.canary
    for tag in ("apply", "object/apply", "object/new", "object"):
        yield f"{tag} os.system", f"!!python/{tag}:os.system [{base.touch!r}]"
        yield f"{tag} eval", f'!!python/{tag}:builtins.eval ["{call}"]'
        yield f"{tag} Popen", f"!!python/{tag}:subprocess.Popen [[touch, {path}]]"
        yield f"{tag} with listitems", f'!!python/{tag}:builtins.eval {{args: ["{call}"], listitems: [1]}}'
    yield "name", "!!python/name:os.system"
    yield "module", "!!python/module:this"
    yield "tuple", "!!python/tuple [1, 2]"
    yield "the whole name of the tag", f"!<tag:yaml.org,2002:python/object/apply:os.system> [{base.touch!r}]"
    yield (
        "a handle for the tag",
        f"%TAG !e! tag:yaml.org,2002:python/object/apply:\n---\na: !e!os.system [{base.touch!r}]",
    )
    for tag, value in (
        ("bool", "x"),
        ("bool", ""),
        ("int", "x"),
        ("int", "0x"),
        ("float", "x"),
        ("float", "[1]"),
        ("null", "x"),
        ("timestamp", "x"),
        ("binary", "%"),
        ("set", "[1]"),
        ("omap", "7"),
        ("pairs", "x"),
        ("map", "x"),
        ("seq", "x"),
        ("str", "[1]"),
        ("merge", "x"),
        ("value", "x"),
        ("int", "'" + "9" * 5000 + "'"),
    ):
        yield f"!!{tag} {value[:10]}", f"!!{tag} {value}"


def _growing() -> Iterator[tuple[str, str]]:
    def levels(number: int, width: int, first: str, again: str) -> str:
        lines = [f"a0: &a0 {first}"]
        lines += [f"a{n}: &a{n} " + again.format(", ".join([f"*a{n - 1}"] * width)) for n in range(1, number)]
        return "\n".join(lines)

    for number, width in ((9, 9), (30, 2), (100, 10)):
        yield f"aliases, {width} to the {number}", levels(number, width, "[x, x]", "[{}]")
    yield "aliases within keys", levels(20, 2, "[x]", "{{[{}]: 1}}")
    yield (
        "merge keys, 2 to the 30",
        "\n".join(["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 30)]),
    )
    yield "itself within itself", "data: &a {source: *a}"
    yield "a list within itself", "data: &a [*a]"
    yield "a merge of itself", "data: &a {<<: *a}"
    for opening, name in (("[", "lists"), ("{a: ", "objects"), ("- ", "blocks"), ("? ", "keys")):
        yield f"{name} 10^5 deep", opening * 10**5
    yield "quotes without end", '"' + "x" * 10**6
    yield "10^6 keys", "\n".join(f"k{number}: 1" for number in range(10**6))
    yield "10^5 anchors", "\n".join(f"k{number}: &k{number} 1" for number in range(10**5))
    yield "a number of 10^6 digits", "train: {epochs: " + "9" * 10**6 + "}"
    yield "an exponent of 10^6", "train: {epochs: 1e1000000}"
    yield "10^6 documents", "---\n" * 10**6
    yield "spaces", " " * 10**7
    yield "control characters", 'data: {source: "\\e[2J\\u202e\\0"}'
    yield "an escape in a key", '"\\e[2J": 1'


def yaml_files(base: Base) -> Iterator[Case]:
    texts: list[tuple[str, bytes]] = []
    for name, text in _tags(base):
        texts.append((name, (text if text.startswith("%") else f"data: {text}").encode()))
        texts.append(
            (f"{name}, as a value", f"data: {{source: {text}}}".encode() if "%" not in text[:1] else text.encode())
        )
    texts += [(name, text.encode()) for name, text in _growing()]
    for name, raw in (
        ("not UTF-8", b"\xff\xfe\xfa"),
        ("UTF-16", "data: {source: digits}".encode("utf-16")),
        ("NUL", b"a\0b"),
        ("empty", b""),
        ("surrogates", b'data: {source: "\\ud800"}'),
        ("a word", b"x"),
        ("a list", b"[1]"),
    ):
        texts.append((name, raw))
    for name, data in texts:
        armed = _loaded if b"python/" in data else None
        for verb in (("train", "x.yaml", "--print-config"), ("ablate", "x.yaml", *SHORT), ("tune", "x.yaml", *SHORT)):
            yield Case(f"{name}, {verb[0]}", verb, {"x.yaml": data}, armed=armed if verb[0] == "train" else None)
        yield Case(f"{name}, in a run", ("resume", "{run}"), in_run={"config.yaml": data}, make=_unfinished)
        yield Case(f"{name}, in a study", ("resume", "{run}"), in_run={"study.yaml": data})


def _loaded(path: Path) -> object:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.UnsafeLoader)


def _json_bombs() -> Iterator[tuple[str, bytes]]:
    for depth in (10**3, 10**5, 10**6):
        yield f"lists {depth} deep", b"[" * depth + b"]" * depth
        yield f"objects {depth} deep", b'{"format_version":' * depth + b"1" + b"}" * depth
    yield "a number of 10^6 digits", b"9" * 10**6
    yield "an object with a number of 10^6 digits", b'{"format_version": ' + b"9" * 10**6 + b"}"
    yield "10^6 keys", json.dumps({str(number): number for number in range(10**6)}).encode()
    yield "10^6 equal keys", b"{" + b'"a": 1, ' * 10**6 + b'"a": 1}'
    yield "no end", b'{"a": "' + b"x" * 10**6
    for value in (
        None,
        True,
        7,
        -1.5,
        "x",
        "",
        [],
        {},
        [1],
        [[]],
        {"format_version": 10**30},
        {"format_version": None},
    ):
        yield f"just {json.dumps(value)[:40]}", json.dumps(value).encode()
    for raw in (
        b"",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"NaN",
        b"Infinity",
        b'{"a": 1e999}',
        b'"\\ud800"',
        b"\0",
        b'{"a": "\\u001b[2J"}',
    ):
        yield f"the bytes {raw[:20]!r}", raw


#: file of a run -> the verbs that read it
READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "model/model.json": (("predict", "{run}", "{image}"), ("summary", "{run}")),
    "splits.json": (("evaluate", "{run}"), ("report", "{run}"), ("explain", "{run}")),
    "summary.json": (("runs", "."), ("resume", "{run}"), ("report", "{run}")),
    "environment.json": (("report", "{run}"),),
    "evaluation-val.json": (("report", "{run}"), ("compare", "{run}", "{run}")),
    "evaluation-test.json": (("runs", "."), ("report", "{run}")),
    "skipped.json": (("report", "{run}"),),
    "test-access.jsonl": (("evaluate", "{run}", "--split", "test"), ("report", "{run}")),
    "crossval.json": (("runs", "."), ("report", "{run}")),
    "ablation.json": (("runs", "."), ("report", "{run}")),
    "optuna.json": (("resume", "{run}"),),
    "folds.json": (("resume", "{run}"),),
    "begun.json": (("resume", "{run}"),),
    "arms.json": (("resume", "{run}"),),
}


def json_files(base: Base) -> Iterator[Case]:
    study = {"study.yaml": b"kind: crossval\nfolds: 2\n"}
    bombs = list(_json_bombs())
    for file, verbs in READERS.items():
        around = (
            study
            if file in ("crossval.json", "ablation.json", "optuna.json", "folds.json", "begun.json", "arms.json")
            else {}
        )
        for name, data in bombs:
            for verb in verbs:
                yield Case(f"{file}: {name}, {verb[0]}", _in_run(verb), in_run={**around, file: data})
    huge = json.dumps({str(number): 0 for number in range(10**7)}).encode()
    yield Case("model.json: 10^7 keys", READERS["model/model.json"][0], in_run={"model/model.json": huge})


def _in_run(verb: tuple[str, ...]) -> tuple[str, ...]:
    """`runs .` needs a copy of the run in the folder, too."""
    return verb if "{run}" in verb else (*verb[:-1], "{run}/..")


def json_fields(base: Base) -> Iterator[Case]:
    """Each field of each JSON file of a run replaced by each value of another kind."""
    values: tuple[Json, ...] = (
        None,
        True,
        -3,
        0,
        10**30,
        1e308,
        "x",
        "",
        [],
        {},
        [[]],
        "\x1b[2J\u202e\r",
        f"__import__('os').system({base.touch!r})",
        "../" * 8 + "etc/passwd",
        "\ud800",
        2**31,
        0.5,
    )
    for file, verbs in READERS.items():
        if not (base.run / file).exists() or file.endswith(".jsonl"):
            continue
        text = (base.run / file).read_text(encoding="utf-8")
        seen = set()
        content = json.loads(text)
        for path in paths_of(content):
            kind = tuple(step if isinstance(step, str) and not step.isdigit() else "[]" for step in path)
            if not path or kind in seen:
                continue
            seen.add(kind)
            for number, value in enumerate(values):
                if file != "model/model.json" and number % 5 != len(seen) % 5:
                    continue  # these are read by verbs that take seconds
                verb = verbs[number % len(verbs)] if file != "model/model.json" else verbs[0]
                data = json.dumps(replaced(content, path, value)).encode()
                name = f"{file} {'.'.join(map(str, path))}: {str(value)[:20]!r}"
                yield Case(name, _in_run(verb), in_run={file: data})


def _cells() -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "NUL", b"id,group\n\0\n"
    yield "not UTF-8", b"id,group\n\xff,1\n"
    yield "a cell of 10^7 characters", b"id,group\n" + b"x" * 10**7 + b",1\n"
    yield "a quote without end", b'id,group\n"' + b"x\n" * 10**6
    yield "10^6 columns", b"id,group" + b",x" * 10**6 + b"\n1,2\n"
    yield "10^6 rows", b"id,group\n" + b"1,2\n" * 10**6
    yield "escapes", b"id,group\n\x1b[2J,\r\n"
    yield "no rows", b"id,group\n"
    yield "other columns", b"a,b\n1,2\n"
    yield "a binary", bytes(range(256)) * 100


def csv_files(base: Base) -> Iterator[Case]:
    for name, data in _cells():
        argv = ("train", "--data", "digits", "--data.groups", "x.csv", *SHORT)
        yield Case(f"{name}, as groups", argv, {"x.csv": data})
        for file in ("metrics.csv", "predictions-val.csv"):
            yield Case(f"{name}, {file}, report", ("report", "{run}"), in_run={file: data})
            yield Case(f"{name}, {file}, compare", ("compare", "{run}", "{run}"), in_run={file: data})
    for file in ("metrics.csv", "predictions-val.csv"):
        text = (base.run / file).read_text()
        head, first = text.splitlines()[:2]
        for at, _ in enumerate(head.split(",")):
            for value in ("", "x", "-3", "1e999", "nan", "9" * 1000, "=1+1", "\x1b[2J"):
                cells = first.split(",")
                cells[at] = value
                if at < 14:
                    data = "\n".join([head, ",".join(cells), ""]).encode()
                    yield Case(f"{file} column {at}: {value[:10]!r}", ("report", "{run}"), in_run={file: data})
    pattern = ("train", "--data", "digits", "--data.groups", "(a+)+$|(", *SHORT)
    yield Case("a pattern that is none", pattern)
