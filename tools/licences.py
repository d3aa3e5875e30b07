"""Writes docs/licences.md: every dependency by the extra that brings it, with its licence and what that means.

``python tools/licences.py`` in an environment with all extras (`make licences`) reads the metadata of what is
installed. The exit code is 1 where a licence is unknown, which the page says as well.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = "convsmith"  # without extras
LEFT_OUT = ("dev", "bench")  # nothing of these is installed by users

#: kind -> what it means, the strictest first; the first whose pattern is in a licence's name is that of the package
KINDS = {
    "strong copyleft": (
        re.compile(r"\bA?GPL|GNU (Affero )?General Public|\bAGPL", re.IGNORECASE),
        "programs that contain the package, and with the AGPL services that run it, must offer their source under the "
        "same licence",
    ),
    "weak copyleft": (
        re.compile(r"LGPL|Lesser General Public|MPL|Mozilla|EPL|CDDL", re.IGNORECASE),
        "changes to the package itself must be published under its licence; programs that use it are free",
    ),
    "proprietary": (
        re.compile(r"NVIDIA|proprietary|EULA", re.IGNORECASE),
        "free to use and to redistribute with a program under the vendor's terms; not open source",
    ),
    "permissive": (
        re.compile(
            r"\b(MIT|0?BSD|Apache|PSF|CNRI|Python Software Foundation|BSL|ISC|HPND|Unlicense|zlib|CC0|Public Domain)",
            re.IGNORECASE,
        ),
        "keep the copyright notice when you redistribute it",
    ),
}
#: The exception of GCC's run-time library, which SciPy and NumPy ship: it frees the programs that use it.
_EXCEPTION = re.compile(r"GPL-3\.0-(or-later|only) WITH GCC-exception-3\.1")
#: Packages whose metadata leave out what their wheels hold beside their own code.
BUNDLED = {"pi-heif": "BSD-3-Clause AND LGPL-3.0-or-later"}  # of libheif and libde265 in its wheels
#: Packages whose metadata name no licence, looked into by hand.
NOT_STATED = {"cuda-toolkit": "not stated; only NVIDIA's list of its libraries, without content"}


def licence_of(name: str) -> str:
    """What the package's metadata say: an SPDX expression, or else its classifiers, or else its own words."""
    about = metadata.metadata(name)
    if bundled := BUNDLED.get(canonicalize_name(name)):
        return bundled
    if expression := about.get("License-Expression"):
        return str(expression)
    classifiers = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    if classifiers := [one for one in classifiers if one not in ("OSI Approved", "Other/Proprietary License")]:
        return " and ".join(classifiers)
    words = str(about.get("License", "")).strip().splitlines()
    return words[0][:60] if words else NOT_STATED.get(canonicalize_name(name), "")


def kind_of(licence: str) -> str:
    """The kind of the strictest of the licences in an expression; "unknown" where one of them fits no kind."""
    order = ["unknown", *KINDS]
    parts = re.split(r"\s+(?:AND|OR)\s+|[()]", _EXCEPTION.sub("MIT", licence), flags=re.IGNORECASE)
    kinds = [
        next((kind for kind, (pattern, _) in KINDS.items() if pattern.search(part)), "unknown")
        for part in parts
        if part.strip()
    ]
    return min(kinds, key=order.index, default="unknown")


def direct(extra: str) -> list[Requirement]:
    """What pyproject asks for in an extra, or in the core."""
    lines = PROJECT["dependencies"] if extra == CORE else PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def extras() -> list[str]:
    """The core and the extras that bring something."""
    bringing = [name for name, lines in PROJECT["optional-dependencies"].items() if lines]
    return [CORE, *(name for name in bringing if name not in LEFT_OUT)]


def below(wanted: list[Requirement], known: set[tuple[str, str]]) -> Iterator[str]:
    """The packages that `wanted` bring in, at any depth, that are not `known` yet; `known` grows."""
    for one in wanted:
        name = canonicalize_name(one.name)
        for extra in ("", *sorted(one.extras)):
            if (name, extra) in known:
                continue
            known.add((name, extra))
            if not extra:
                yield name
            with suppress(metadata.PackageNotFoundError):  # the table says that it is not installed
                lines = [Requirement(line) for line in metadata.requires(name) or []]
                yield from below(
                    [it for it in lines if it.marker is None or it.marker.evaluate({"extra": extra})], known
                )


def page() -> tuple[str, list[str]]:
    """The page, and the packages whose licence is unknown."""
    seen, tables, strict, unknown = {("convsmith", "")}, [], [], []
    for extra in extras():
        rows, bold = [], {canonicalize_name(one.name) for one in direct(extra)}
        for name in sorted(below(direct(extra), seen)):
            try:
                licence = licence_of(name)
            except metadata.PackageNotFoundError:
                licence = ""
            kind = kind_of(licence)
            unknown += [name] if kind == "unknown" else []
            strict += [f"| {name} | {extra} | {licence or 'not stated'} | {kind} |"] if kind != "permissive" else []
            shown = f"**{name}**" if name in bold else name
            rows.append(f"| {shown} | {licence or 'not stated'} | {kind} |")
        title = "Without extras" if extra == CORE else f"The extra `{extra}`"
        tables.append("\n".join([f"## {title}", "", "| package | licence | kind |", "|---|---|---|", *rows]))
    kinds = "\n".join(f"- {kind}: {meaning}." for kind, (_, meaning) in reversed(KINDS.items()))
    noted = "\n".join(strict)
    text = (
        f"""# Licences of the dependencies

The licence of the package itself is MIT. This page lists what is installed with it, by the extra that brings it. The
packages that `pyproject.toml` names are in bold, those that they bring in turn are not, and each is listed where it
comes first. `make licences` writes the page from the metadata of installed packages, here on {platform.system()}
{platform.machine()}; other systems lack NVIDIA's libraries. Metadata can be wrong, and this is no legal advice.

What the kinds ask of you:

{kinds}

All that is not permissive:

| package | extra | licence | kind |
|---|---|---|---|
{noted}

"""
        + "\n\n".join(tables)
        + "\n"
    )
    return text, unknown


def main() -> int:
    text, unknown = page()
    PAGE.write_text(text, encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")
    if unknown:
        print(f"licences: unknown for {', '.join(unknown)}", file=sys.stderr)
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
