"""Asks whether holes are known in the packages of an environment, with pip-audit.

``python tools/audit.py SITE-PACKAGES`` (`make audit`). A service that cannot be reached, or that knows nothing, must
not pass for an environment without holes: each is asked for a hole that is known first. Where none answers, the audit
is skipped, and says so. The exit code is 1 where a hole is found.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SERVICES = ("pypi", "osv")  # of pip-audit
KNOWN_HOLE = "jinja2==2.11.0"  # CVE-2020-28493
SECONDS = 300


def main(site_packages: str) -> int:
    service = next(filter(knows_of_holes, SERVICES), None)
    if service is None:
        print("audit: SKIPPED, since no database of known holes can be reached from here: neither PyPI's nor OSV's")
        return 0
    found = audited("--vulnerability-service", service, "--path", site_packages)
    if found is None:
        print(f"audit: SKIPPED, since the service '{service}' gave no answer", file=sys.stderr)
        return 0
    holes = [(one["name"], one["version"], hole) for one in found if one.get("vulns") for hole in one["vulns"]]
    for name, version, hole in holes:
        print(f"{name} {version}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or 'no version yet'}")
    unknown = [one["name"] for one in found if "skip_reason" in one]
    if unknown:
        print(f"audit: {service} does not know {', '.join(unknown)}")
    print(f"audit: {len(found) - len(unknown)} packages, {len(holes)} known holes")
    return 1 if holes else 0


def knows_of_holes(service: str) -> bool:
    """Whether the service tells the hole of a package that has one."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(KNOWN_HOLE + "\n", encoding="ascii")
        found = audited("--vulnerability-service", service, "--requirement", str(wanted), "--no-deps", "--disable-pip")
    return bool(found and any(one.get("vulns") for one in found))


def audited(*words: str) -> list[dict[str, Any]] | None:
    """What pip-audit says of each package; None where it cannot say."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        return list(json.loads(done.stdout)["dependencies"])
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
