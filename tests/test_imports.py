"""The import arrows of the house: who may import whom, read from the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "convsmith"
LEAVES = {"contracts", "errors", "runtime", "files", "records", "events", "plainyaml"}
ROOMS = {"data", "nets", "optim", "figures", "tracking"}
BELOW_RUN = {*ROOMS, "config", "rundir"}
#: Who may import what, besides itself and the leaves. Those that are not named here may import everything.
ARROWS: dict[str, set[str]] = {
    "contracts": set(),
    "errors": set(),
    "runtime": set(),
    "plainyaml": set(),
    "files": set(),
    "records": set(),
    "events": set(),
    "rundir": set(),
    **{room: set() for room in ROOMS},
    # Of the rooms `config` may see the configs alone, which the test below holds.
    "config": {*ROOMS, "training", "transfer"},
    "prediction": BELOW_RUN,
    "transfer": {*BELOW_RUN, "prediction", "training"},
    "training": {*BELOW_RUN, "prediction", "transfer"},
    "explain": {*BELOW_RUN, "prediction", "transfer", "training"},
    "studies": {*BELOW_RUN, "prediction", "transfer", "training"},
    "report": {*BELOW_RUN, "prediction", "transfer", "training", "studies", "explain"},
    "serve": {*BELOW_RUN, "prediction", "explain"},
    "export": {*BELOW_RUN, "prediction"},
}


def unit(module: str) -> str:
    """``convsmith.data.cache`` -> ``data``."""
    return module.split(".")[1] if "." in module else ""


def modules() -> Iterator[tuple[str, Path]]:
    for path in SOURCE.rglob("*.py"):
        yield ".".join(("convsmith", *path.relative_to(SOURCE).with_suffix("").parts)), path


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("convsmith."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "convsmith":
                yield from (f"convsmith.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("convsmith."):
                yield node.module


def test_the_arrows_name_units_that_exist() -> None:
    units = {unit(name) for name, _ in modules()}
    assert set(ARROWS) <= units
    assert units - set(ARROWS) <= {
        "",
        "__init__",
        "cli",
        "verbs",
        "display",
        "run",
        "spec",
        "modelsummary",
        "machine",
        "show",
        "study_display",
    }


@pytest.mark.parametrize("importer", sorted(ARROWS))
def test_arrows(importer: str) -> None:
    allowed = ARROWS[importer] | LEAVES | {importer}
    found = [
        f"{name} imports {target}"
        for name, path in modules()
        if unit(name) == importer
        for target in imported(path)
        if unit(target) not in allowed
    ]
    assert not found


def test_config_sees_of_the_rooms_only_their_configs() -> None:
    targets = [target for target in imported(SOURCE / "config.py") if unit(target) in ROOMS | {"training", "transfer"}]
    assert targets
    assert all(target.endswith(".config") for target in targets)


def test_nothing_below_the_experiment_sees_runconfig() -> None:
    above = {"config", "transfer", "training", "prediction", "studies", "explain", "report", "verbs"}
    above |= {"__init__", "display", "run", "spec", "modelsummary", "machine", "show", "study_display"}
    users = {unit(name) for name, path in modules() if "RunConfig" in path.read_text(encoding="utf-8")}
    assert users <= above


@pytest.mark.parametrize(
    "command",
    [
        "import convsmith, convsmith.cli, convsmith.config",
        "from convsmith.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from convsmith.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
        "from convsmith.cli import main; main(['train', '--print-config'])",
        "from convsmith.cli import main; assert main(['train', '--optim.lrr', '1']) == 2",
    ],
)
def test_help_print_config_and_typing_errors_import_nothing_heavy(command: str) -> None:
    heavy = ("torch", "torchvision", "sklearn", "matplotlib", "pyarrow", "wandb", "numpy")
    check = f"{command}\nimport sys\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
