"""Every metric of the table is wherever metrics are: what a new line in METRICS brings with it."""

import csv
import json
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from convsmith.cli import main
from convsmith.records import METRICS, MONITORS, metric_values, shown

RUN = shlex.split("""train --data digits --data.limit 200 --epochs 2 --batch-size 32 --train.threads 1
    --train.layout contiguous --track.wandb off --model convnet --model.blocks '[{channels: 4}]' --model.hidden []
    --train.monitor""")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("everywhere"))
        assert main([*RUN, list(MONITORS)[-1], "--name", "run"]) == 0
        shutil.copytree("runs/run", "runs/other")
        yield folder


@pytest.fixture
def values(folder):
    """Each metric's value by its name."""
    values = metric_values(json.loads((folder / "runs/run/evaluation-val.json").read_text()))
    assert set(values) == set(METRICS)
    return values


def test_the_summary_and_the_best_row_of_metrics_csv_have_the_values_of_the_evaluation(folder, values):
    summary = json.loads((folder / "runs/run/summary.json").read_text())
    assert summary["val"] == values
    with (folder / "runs/run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(MONITORS) <= set(rows[0])
    best = rows[summary["best_epoch"] - 1]
    assert {name: float(best[f"val_{name}"]) for name in METRICS} == pytest.approx(values, rel=1e-5)


def test_the_terminal_names_each(folder, values, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["evaluate", "runs/run"]) == 0
    evaluated = capsys.readouterr().out
    assert main(["compare", "runs/run", "runs/other"]) == 0  # equal runs, whose metrics are named in one sentence
    for said in (evaluated, capsys.readouterr().out):
        for name, value in values.items():
            assert METRICS[name].label in " ".join(said.split())
            assert shown(name, value) in " ".join(said.split())


def words(path: Path) -> set[str]:
    found = set()
    parser = HTMLParser()
    parser.handle_data = lambda data: found.add(data.strip())  # type: ignore[method-assign]
    parser.feed(path.read_text(encoding="utf-8"))
    return found


def test_report_and_comparison_show_each(folder, values, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["compare", "runs/run", "runs/other", "--out", "compare.html"]) == 0
    found = words(folder / "runs/run/report.html")
    assert {METRICS[name].heading for name in values} <= found
    assert {shown(name, value) for name, value in values.items()} <= found
    same = " ".join(words(folder / "compare.html"))
    for name, value in values.items():
        assert METRICS[name].label in same
        assert shown(name, value) in same


@pytest.mark.parametrize("name", METRICS)
def test_a_training_may_be_watched_by_each(name, capsys):
    assert main([*RUN, f"val_{name}", "--print-config"]) == 0
    assert f"monitor: val_{name}" in capsys.readouterr().out
    assert main([*RUN, f"val_{name}x", "--print-config"]) == 2
    assert f"Did you mean 'val_{name}'?" in capsys.readouterr().err
