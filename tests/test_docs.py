"""README and docs tell the truth: their commands parse, their keys and links exist, and no key is left out."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convsmith.cli import verb_parser, verbs
from convsmith.config import RunConfig, fields, presets
from convsmith.errors import UserError
from convsmith.verbs.flags import read_settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMAND = re.compile(r"^(?: {4})?(convsmith [a-z].*)$", re.M)


def commands() -> list[tuple[str, str]]:
    return [
        (page.name, re.sub(r"\s{2,}.*$", "", found.group(1)))
        for page in PAGES
        for found in COMMAND.finditer(page.read_text(encoding="utf-8"))
    ]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 15
    assert {shlex.split(command)[1] for _, command in commands()} >= {"train", "resume", "evaluate", "predict", "data"}


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_in_the_docs_parse(page: str, command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    assert verb in verbs()
    args = verb_parser(verb).parse_all(arguments)
    if verb == "train" and not args.config:
        assert isinstance(read_settings(args).config, RunConfig)


def inline() -> list[tuple[str, str]]:
    """Commands within sentences and tables, but for those that leave a choice open (`RUN|STUDY`, `[PATH]`)."""
    found = re.compile(r"`(convsmith [a-z][^`|\[]*)`")
    return sorted({(page.name, command) for page in PAGES for command in found.findall(page.read_text("utf-8"))})


def test_commands_in_sentences_parse() -> None:
    wrong = []
    for page, command in inline():
        if "--help" in command:
            continue
        _, verb, *arguments = shlex.split(re.sub(r" [A-Z]\b(?!\.)", " 2", command.replace("...", "")))
        try:
            verb_parser(verb).parse_all(arguments)
        except UserError as error:
            if "are required" not in str(error):  # `convsmith explain` alone names the verb
                wrong.append(f"{page}: {command}: {error}")
    assert not wrong


def test_targets_of_make_that_the_docs_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text("utf-8"), re.M)}
    assert named
    assert named <= targets


def test_the_guide_names_every_key_and_only_those_that_exist() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    known = {key for key, _ in fields()}
    sections = "|".join(RunConfig.model_fields)
    assert {key for key in known if f"`{key}`" not in guide} == set()
    for page in PAGES:
        named = set(re.findall(rf"`(?:--)?((?:{sections})\.[a-z_0-9]+)`", page.read_text(encoding="utf-8")))
        assert named - known == set(), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_no_merge_was_left_unfinished(page: Path) -> None:
    assert not re.search(r"^(<{7}|>{7}) ", page.read_text(encoding="utf-8"), re.M)


def test_tests_that_the_docs_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"tests/[\w/]+\.py", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), name


def _transfer(result: dict[str, Any]) -> str:
    seconds = result["mean"]["plain"]["seconds to this accuracy"]
    return (
        f"`linear-probe` {seconds['linear-probe']:.1f} s, `finetune` {seconds['finetune']:.0f} s, "
        f"the loop {seconds['plain']:.0f} s, fastai {seconds['fastai fine_tune']:.0f} s"
    )


def test_figures_in_the_readme_are_those_of_the_result_files() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    accuracy = "{test_accuracy:.1%}".format_map
    quoted = {
        **dict.fromkeys(["baseline", "digits", "strong"], accuracy),
        "start": lambda result: f"{result['seconds']:.1f} s",
        "memory": lambda result: f"{result['peak_megabytes']:,.0f} MB",
        "throughput": lambda result: f"{result['ratios']['plain']:.1f}x",
        "interval_coverage": lambda result: f"{result['cases']['learned, 5 folds, null']['by image']['coverage']:.1%}",
        "memory_kept": lambda result: f"{result['ratio']:.1f}x",
        "transfer": _transfer,
        "jobs": lambda result: f"{result['ratio']:.2f}",
    }
    of_verbs = [
        ("predict", lambda result: f"| {result['predict']['times_as_fast']:.1f}x a plain loop with 2 workers"),
        ("predict", lambda result: f"| {result['evaluate']['times_as_fast']:.1f}x the loop |"),
    ]
    for name, figure in [*quoted.items(), *of_verbs]:
        assert figure(json.loads((ROOT / f"docs/results/{name}.json").read_text())) in readme, name


def test_accuracies_of_the_fast_presets_are_those_of_their_seeds() -> None:
    rows = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    result = json.loads((ROOT / "docs/results/speedrun.json").read_text())
    assert result["summary"].keys() == {"speedrun", "fast90"}
    for preset, of_seeds in result["summary"].items():
        row = next(row for row in rows if row.startswith(f"| preset `{preset}` on CIFAR-10, "))
        figures = [f"{of_seeds[key]:.1%}" for key in ("mean_mirrored", "mean_plain", "least_mirrored")]
        figures += [f"{of_seeds['seeds']} seed", f"{of_seeds['median_training_seconds']:.0f} s"]
        figures += [
            f"{steps['seconds']['airbench94_muon']:.0f} s" for steps in result["steps"] if steps["preset"] == preset
        ]
        if preset == "speedrun":
            there = result["airbench"][-1]
            figures += [f"{there['plain']:.1%}", f"{there['six_views']:.1%}", f"{sum(there['intervals'][:-1]):,.0f} s"]
        assert [figure for figure in figures if figure not in row] == [], preset
        assert figures[0] in presets()[preset], preset


def _kills(result: dict[str, Any]) -> list[str]:
    signals, disks = result["signals"], result["disks"]
    return [
        f"{sum(signals['sent'].values())} signals",
        f"{signals['runs']} runs",
        f"{signals['differing']} differed",
        f"{disks['full']} full disks",
        f"{disks['differing']} resumed otherwise",
    ]


def _flipped_bytes(result: dict[str, Any]) -> list[str]:
    found = {name: sum(file[name] for file in result["files"].values()) for name in ("noticed", "harmless", "silent")}
    total = sum(found.values()) + sum(file["traceback"] for file in result["files"].values())
    return [f"{found['noticed'] + found['harmless']:,} of {total:,}", f"{found['silent']} gave"]


def _hostile_images(result: dict[str, Any]) -> list[str]:
    small, large, most = result["small"]["files"], result["large"]["files"], result["most"]
    seconds, mebibytes = (
        max(value for name, (value, _) in most.items() if name.endswith(key)) for key in ("seconds", "mebibytes")
    )
    return [f"{small:,} small", f"{large} large", f"{seconds:.1f} s", f"{mebibytes:,.0f} MiB"]


def _oldest(result: dict[str, Any]) -> list[str]:
    core = result["core"]
    return [f"{core['passed']:,} tests passed", f"{core['failed']} failed", f"{core['skipped']} were skipped"]


def _hostile_records(result: dict[str, Any]) -> list[str]:
    return [f"{result['calls']:,} calls", f"{result['possible']:,} possible", f"{result['unexpected']} ended otherwise"]


def _signals(result: dict[str, Any]) -> list[str]:
    return [
        f"{result['signals']} signals",
        f"{result['within_two_seconds']} ended it within 2 s",
        f"{result['most_seconds']:.0f} s of the clock",
        f"{result['most_processor_seconds']:.1f} s of the processor",
        f"{result['other_exit_codes']} other exit codes",
    ]


def _hostile_files(result: dict[str, Any]) -> list[str]:
    totals = result["totals"]
    return [
        f"{totals['commands']:,} commands",
        f"{totals['executions']} executions",
        f"{totals['writes']} writes",
        f"{totals['tracebacks']} tracebacks",
        f"{totals['slowest_seconds']:.0f} s",
        f"{totals['of']:,} possible",
    ]


def _serve_attack(result: dict[str, Any]) -> list[str]:
    attacks = [scenario for scenario in result["scenarios"] if scenario["hostile"] != "none"]
    answered = [scenario["answered"] for scenario in attacks]
    fewer = [str(number) for number in sorted(answered) if number < 0.99 * result["honest"]]
    memory = [scenario["memory_mb"] for scenario in attacks]
    return [
        f"{result['honest']} honest",
        f"{result['hostile']:,} hostile",
        f"{len(attacks) - len(fewer)} of {len(attacks)} attacks",
        " and ".join(filter(None, (", ".join(fewer[:-1]), *fewer[-1:]))),
        f"p99 at most {max(scenario['p99_ms'] for scenario in attacks) / 1000:.0f} s",
        f"from {min(one['before'] for one in memory) / 1000:.1f} GB",
        f"at most {max(one['most'] for one in memory) / 1000:.1f} GB",
    ]


#: result file -> the figures that the row of docs/reliability.md must have which links it
RELIABILITY: dict[str, Callable[[Any], list[str]]] = {
    "kills": _kills,
    "flipped_bytes": _flipped_bytes,
    "cache_checks": lambda result: [f"{result['cifar10']['share_cpu']:.1%}"],
    "hostile_images": _hostile_images,
    "hostile_records": _hostile_records,
    "hostile_files": _hostile_files,
    "signals": _signals,
    "serve_attack": _serve_attack,
    "oldest": _oldest,
}


def test_figures_of_the_reliability_page_are_those_of_the_result_files() -> None:
    rows = (ROOT / "docs/reliability.md").read_text(encoding="utf-8").splitlines()
    for name, figures in RELIABILITY.items():
        row = " ".join(row for row in rows if f"(results/{name}.json)" in row)
        for figure in figures(json.loads((ROOT / f"docs/results/{name}.json").read_text(encoding="utf-8"))):
            assert figure in row, (name, figure)
