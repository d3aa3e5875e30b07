"""The tools of a release: an audit that cannot pass in silence, licences by their kind, a page that is up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"

pytest.importorskip("tomllib", reason="the tools need Python 3.11")


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", TOOLS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit, licences = tool("audit"), tool("licences")
HOLE = {"id": "CVE-1", "fix_versions": ["2.11.3"]}
JINJA = {"name": "jinja2", "version": "2.11.0", "vulns": [HOLE]}


@pytest.mark.parametrize(
    ("knows", "found", "code", "says"),
    [
        ({}, None, 0, "audit: SKIPPED, since no database of known holes can be reached"),
        ({"osv": [JINJA]}, [{"name": "torch", "version": "2", "vulns": []}], 0, "audit: 1 packages, 0 known holes"),
        ({"pypi": [JINJA]}, [{"name": "torch", "version": "2", "vulns": [HOLE]}], 1, "torch 2: CVE-1, fixed in 2.11.3"),
        ({"pypi": [JINJA]}, [{"name": "torch", "skip_reason": "not found"}], 0, "audit: pypi does not know torch"),
        ({"pypi": [{"name": "jinja2", "skip_reason": "not found"}]}, [], 0, "audit: SKIPPED"),
        ({"pypi": [{"name": "jinja2", "version": "2.11.0", "vulns": []}]}, [], 0, "audit: SKIPPED"),
        ({"pypi": [JINJA]}, None, 0, "audit: SKIPPED, since the service 'pypi' gave no answer"),
    ],
)
def test_no_answer_is_no_pass(
    knows: dict[str, Any],
    found: Any,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def audited(flag: str, service: str, what: str, *_: str) -> Any:
        return knows.get(service) if what == "--requirement" else found

    monkeypatch.setattr(audit, "audited", audited)
    assert audit.main("site-packages") == code
    told = capsys.readouterr()
    assert says in told.out + told.err


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("MIT", "permissive"),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", "permissive"),
        ("Apache-2.0 WITH LLVM-exception", "permissive"),
        ("MPL-2.0 AND MIT", "weak copyleft"),
        ("GNU Lesser General Public License v3 (LGPLv3)", "weak copyleft"),
        ("GNU General Public License v2 (GPLv2) and MIT License", "strong copyleft"),
        ("AGPL-3.0-or-later", "strong copyleft"),
        ("BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1", "permissive"),
        ("LicenseRef-NVIDIA-Proprietary", "proprietary"),
        ("MIT AND LicenseRef-Custom", "unknown"),
        ("LIMITED", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_licence_is_of_the_kind_of_its_strictest_part(licence: str, kind: str) -> None:
    assert licences.kind_of(licence) == kind


def test_the_page_of_licences_has_what_pyproject_asks_for() -> None:
    """Of what is installed by the way only `make licences` knows, and it changes without us."""
    text = licences.PAGE.read_text(encoding="utf-8")
    for extra in licences.extras():
        title = "## Without extras" if extra == licences.CORE else f"## The extra `{extra}`"
        assert title in text, "make licences"
        for wanted in licences.direct(extra):
            assert f"| **{licences.canonicalize_name(wanted.name)}** |" in text, f"{wanted.name}: make licences"
    assert not [line for line in text.splitlines() if line.endswith(("| unknown |", "| strong copyleft |"))]
