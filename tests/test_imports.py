"""The import arrows of the house: who may import whom, read from the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "convsmith"
ROOMS = {"data", "nets", "optim", "figures", "tracking"}
#: What every room may import: each of the leaves, and what it may import of the others.
LEAVES: dict[str, set[str]] = {
    "terminal": set(),
    "errors": {"terminal"},
    "precision": {"errors"},
    "events": set(),
    "contracts": {"errors", "files"},
    "processes": set(),
    "launch": {"errors"},
    "runtime": {"errors", "launch", "processes"},
    "plainyaml": {"errors", "files", "terminal"},
    "files": {"errors"},
    "memory": {"errors"},
    "network": {"errors"},
    "records": {"errors", "files"},
}
#: Who may import what, besides itself and the leaves.
ARROWS: dict[str, set[str]] = {
    "rundir": set(),
    "crash": {"rundir"},
    **{room: set() for room in ROOMS},
    # Of the rooms `config` may see the configs alone, which a test below holds.
    "config": {"data", "nets", "optim", "tracking", "training", "transfer"},
    "prediction": {"data", "nets", "figures", "config", "rundir"},
    "transfer": {"data", "nets", "optim", "config", "rundir", "prediction"},
    "training": {*ROOMS, "config", "rundir", "prediction", "transfer"},
    "explain": {"data", "nets", "figures", "config", "rundir", "prediction", "training"},
    # The race of `auto` ends with the page of its winner; no page imports the race.
    "studies": {
        "data",
        "optim",
        "figures",
        "tracking",
        "config",
        "rundir",
        "prediction",
        "transfer",
        "training",
        "report",
    },
    "report": {
        "data",
        "nets",
        "figures",
        "tracking",
        "config",
        "rundir",
        "prediction",
        "transfer",
        "studies",
        "explain",
    },
    "serve": {"data", "figures", "rundir", "prediction", "explain"},
    "export": {"data", "rundir", "prediction"},
    "machine": {"data", "tracking", "config"},
    "modelsummary": {"data", "nets", "config", "rundir", "prediction", "transfer", "training"},
    "spec": {"data", "config", "training"},
    "zoo": {"data", "nets", "training", "transfer"},
    "recipes": {"data", "nets", "config", "training", "transfer", "studies"},
    # What shows events and results, and drives nothing.
    "display": {"nets", "prediction", "rundir"},
    "stacked": {"display"},
    "study_display": {"display"},
    "show": {"display", "study_display"},
}
#: The functions of the package, which may import all of the above, and the command line above them.
TOP = {"", "__init__", "__main__", "run", "verbs", "cli"}


def unit(module: str) -> str:
    """``convsmith.data.cache`` -> ``data``."""
    return module.split(".")[1] if "." in module else ""


def modules() -> Iterator[tuple[str, Path]]:
    for path in SOURCE.rglob("*.py"):
        yield ".".join(("convsmith", *path.relative_to(SOURCE).with_suffix("").parts)), path


def imported(path: Path, running: bool = False) -> Iterator[str]:
    """The modules that a file imports, wherever in it; `running`: but for those under TYPE_CHECKING."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if running and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("convsmith."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if (node.module or "").partition(".")[0] == "convsmith":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (name if is_module(name) else str(node.module) for name in names)


def is_module(name: str) -> bool:
    place = SOURCE.parent.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def test_the_arrows_name_units_that_exist() -> None:
    units = {unit(name) for name, _ in modules()}
    assert units | {""} == {*LEAVES, *ARROWS, *TOP}


@pytest.mark.parametrize("importer", sorted({*LEAVES, *ARROWS}))
def test_arrows(importer: str) -> None:
    allowed = LEAVES[importer] if importer in LEAVES else ARROWS[importer] | LEAVES.keys()
    allowed = allowed | {importer}
    found = [
        f"{name} imports {target}"
        for name, path in modules()
        if unit(name) == importer
        for target in imported(path)
        if unit(target) not in allowed
    ]
    assert not found


@pytest.mark.parametrize("name", sorted({*LEAVES, *ARROWS}))
def test_each_arrow_is_used(name: str) -> None:
    used = {unit(target) for module, path in modules() if unit(module) == name for target in imported(path)}
    assert (LEAVES | ARROWS)[name] <= used


def test_no_circle_between_modules() -> None:
    """Imports within functions count; those for types alone do not, since they are gone when the program runs."""
    known = {name.removesuffix(".__init__"): path for name, path in modules()}
    targets = {name: {at for at in imported(path, running=True) if at in known} for name, path in known.items()}
    done: set[str] = set()
    while ready := {name for name in targets if name not in done and targets[name] - {name} <= done}:
        done |= ready
    assert set(targets) - done == set()


def test_nothing_below_the_verbs_prints() -> None:
    """And the verbs print through `terminal` and `display`, which show hidden characters escaped."""
    talks = "convsmith.tracking.wandb_process"  # to the process that has started it, through a pipe
    ways = {"print": "terminal", "sys.stdout.write": "", "sys.stderr.write": "", "Console": "display"}
    found = [
        f"{name}:{node.lineno}"
        for name, path in modules()
        if name != talks
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ways.get(ast.unparse(node.func), unit(name)) != unit(name)
    ]
    assert not found


def test_config_sees_of_the_rooms_only_their_configs() -> None:
    targets = [target for target in imported(SOURCE / "config.py") if unit(target) in ROOMS | {"training", "transfer"}]
    assert targets
    assert all(target.endswith(".config") for target in targets)


def test_nothing_below_the_experiment_sees_runconfig() -> None:
    above = {"config", "transfer", "training", "prediction", "studies", "explain", "report", "verbs"}
    above |= {"__init__", "display", "recipes", "run", "spec", "modelsummary", "machine", "show", "study_display"}
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


def test_a_preset_is_printed_without_torch() -> None:
    """The recipe is decided where nothing is open, too, but only a library's network needs more than its name."""
    command = "import sys\nfrom convsmith.cli import main\nmain(['train', '--preset', 'strong', '--print-config'])"
    check = f"{command}\nprint([name for name in ('torch', 'torchvision', 'timm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
