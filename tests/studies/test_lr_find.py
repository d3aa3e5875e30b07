"""The range test: against a plain torch loop, on a loss of known stability bound, and through the command line."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convsmith.cli import main, verb_parser
from convsmith.config import validate
from convsmith.contracts import Batch
from convsmith.data.dataset import Subset
from convsmith.errors import RunFailed, UserError
from convsmith.optim.config import RegularizeConfig, ScheduleConfig
from convsmith.optim.optimizers import keep_base_rates
from convsmith.optim.schedules import Schedule
from convsmith.studies import lr_find
from convsmith.studies.lr_find import LARGEST_RATE, Point, Sweep, advise, find, range_test
from convsmith.training import setup
from convsmith.training.config import TrainConfig
from convsmith.training.loss import build_loss
from convsmith.training.state import TrainState, new_state
from convsmith.training.step import Recipe
from convsmith.verbs.flags import read_settings
from convsmith.verbs.lr_find import DEFAULTS, HEIGHT, WIDTH, curve_lines

QUICK = "--data digits --train.threads 1 --track.wandb off".split()
CPU = torch.device("cpu")


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """With a schedule that the test must put aside."""
    schedule = Schedule(ScheduleConfig(name="cosine", warmup_epochs=1), 10, 5)
    return new_state(model, keep_base_rates(optimizer), schedule, TrainConfig(epochs=5), CPU)


def groups_of(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    return [
        {"name": "decay", "params": [p for p in model.parameters() if p.ndim > 1], "lr": lr},
        {"name": "no_decay", "params": [p for p in model.parameters() if p.ndim <= 1], "lr": 8 * lr},
    ]


def random_batches(seed: int = 0) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        images = torch.randn(16, 6, generator=generator)
        yield Batch(images, (images[:, 0] > 0).long())


def test_the_test_is_a_plain_torch_loop_with_a_rising_rate() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    twin = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    twin.load_state_dict(model.state_dict())
    settings = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    state = state_of(model, torch.optim.SGD(groups_of(model, 0.05), **settings))
    recipe = Recipe(build_loss(TrainConfig(), 0.1, None), RegularizeConfig())
    rates = Sweep(1e-4, 1.0, 40).rates()
    points = list(range_test(state, recipe, random_batches(), rates, lr=0.05))

    optimizer = torch.optim.SGD(groups_of(twin, 1.0), **settings)
    losses: list[float] = []
    for rate, batch in zip(rates, random_batches(), strict=False):
        for group, multiple in zip(optimizer.param_groups, (1, 8), strict=True):
            group["lr"] = multiple * rate
        loss = F.cross_entropy(twin(batch.images), batch.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [point.learning_rate for point in points] == pytest.approx(np.logspace(-4, 0, 40))
    assert [point.loss for point in points] == pytest.approx(losses, rel=1e-4)
    for point in points:
        shares = 0.9 ** np.arange(point.step)[::-1]
        assert point.smoothed == pytest.approx(np.average(losses[: point.step], weights=shares), rel=1e-4)
    for group in state.optimizer.param_groups:
        assert {key: group[key] for key in settings} == settings


class Weight(nn.Module):
    """A single weight, whose "logits" are itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight


@pytest.mark.parametrize("curvature", [0.5, 4.0, 30.0])
def test_a_quadratic_loss_falls_up_to_its_stability_bound_and_rises_past_it(curvature: float) -> None:
    model = Weight()
    state = state_of(model, torch.optim.SGD([{"name": "decay", "params": list(model.parameters())}], lr=0.1))
    recipe = Recipe(lambda logits, batch: (curvature / 2 * logits**2).sum() + 1, RegularizeConfig())
    sweep = Sweep(1e-3, 100.0, 200)
    images = torch.zeros(1, 1)
    batches = iter([Batch(images, torch.zeros(1, dtype=torch.long))] * 200)
    points = list(range_test(state, recipe, batches, sweep.rates(), lr=0.1))
    bound = 2 / curvature  # gradient descent multiplies the weight by 1 - rate x curvature
    for before, after in itertools.pairwise(points):
        if before.learning_rate < bound:
            assert after.loss <= before.loss
        elif after.loss > 1:  # the weight has not vanished altogether
            assert after.loss > before.loss
    assert len(points) < sweep.steps
    assert points[-1].learning_rate > bound
    assert points[-1].smoothed > 4 * min(point.smoothed for point in points)


def test_a_loss_that_is_no_number_ends_the_test() -> None:
    model = Weight()
    state = state_of(model, torch.optim.SGD([{"name": "decay", "params": list(model.parameters())}], lr=0.1))
    recipe = Recipe(lambda logits, batch: (logits * batch.images).sum(), RegularizeConfig())
    labels = torch.zeros(1, dtype=torch.long)
    batches = (Batch(torch.full((1, 1), value), labels) for value in (1.0, 1.0, math.nan, 1.0))
    points = list(range_test(state, recipe, batches, [1e-3] * 4, lr=0.1))
    assert [point.finite for point in points] == [True, True, False]


def curve(shape: Callable[[float], float], sweep: Sweep, noise: float = 0.0, seed: int = 0) -> list[Point]:
    """Points of a loss that is `shape` of log10(rate), smoothed and stopped as the test does."""
    rng = np.random.default_rng(seed)
    losses: list[float] = []
    points: list[Point] = []
    for number, rate in enumerate(sweep.rates(), start=1):
        losses.append(shape(math.log10(rate)) + noise * rng.standard_normal())
        smoothed = float(np.average(losses, weights=0.9 ** np.arange(number)[::-1]))
        points.append(Point(number, rate, losses[-1], smoothed))
        if smoothed > 4 * min(point.smoothed for point in points):
            break
    return points


def valley(middle: float, cliff: float) -> Callable[[float], float]:
    """A fall from 2.3 to 0.8 around 10**middle, and a steep rise past 10**cliff."""
    return lambda at: 2.3 - 1.5 / (1 + math.exp(-4 * (at - middle))) + max(0.0, at - cliff) * 8


@given(st.floats(-4, -1.5), st.floats(1, 2), st.floats(0, 0.1), st.integers(0, 99), st.sampled_from([60, 100, 300]))
def test_the_suggestion_lies_in_the_fall(middle: float, width: float, noise: float, seed: int, steps: int) -> None:
    sweep = Sweep(steps=steps)
    points = curve(valley(middle, middle + width), sweep, noise, seed)
    advice = advise(points, sweep)
    assert advice.rate is not None, advice.reason
    lowest = min(points, key=lambda point: point.smoothed)
    assert sweep.low <= advice.rate <= lowest.learning_rate <= sweep.high
    # A decade before the middle nothing has been learnt; past the cliff everything is lost.
    assert middle - 1 < math.log10(advice.rate) < middle + width
    assert f"{advice.rate:.2g}" in advice.reason


def test_of_the_two_rules_the_smaller_is_suggested() -> None:
    sweep = Sweep()
    slow = advise(curve(valley(-3, 0), sweep), sweep)  # a wide valley: the tenth of its far end is too high
    narrow = advise(curve(valley(-3, -2.5), sweep), sweep)
    for advice in (slow, narrow):
        steepest, lowest, tenth = (float(word.rstrip(".,;")) for word in advice.reason.split() if word[0].isdigit())
        assert tenth == pytest.approx(lowest / 10, rel=0.06)  # both are rounded to two digits
        assert f"{advice.rate:.2g}" == f"{min(steepest, tenth):.2g}"
    assert "steeply at " + f"{slow.rate:.2g}" in slow.reason
    assert "tenth of which is " + f"{narrow.rate:.2g}" in narrow.reason


@pytest.mark.parametrize(
    ("shape", "sweep", "reason", "again"),
    [
        (lambda at: 2.3, Sweep(), "no rate lowered the loss", Sweep(steps=300)),
        (lambda at: 2.3 + max(0.0, at + 1), Sweep(), "no rate lowered the loss", Sweep(steps=300)),
        (valley(-3, 9), Sweep(high=1e-3), "lowest near 0.001, the highest rate tried", Sweep(high=0.1)),
        (lambda at: 2.3 - 0.3 * at, Sweep(high=100), "lowest near 1e+02", Sweep(high=100, steps=300)),
        (lambda at: 2.3 + 40 * (at + 1), Sweep(low=0.1), "even the lowest rate, 0.1, may be too high", Sweep(low=1e-4)),
    ],
)
def test_a_curve_that_tells_nothing_gets_no_guess(
    shape: Callable[[float], float], sweep: Sweep, reason: str, again: Sweep
) -> None:
    advice = advise(curve(shape, sweep), sweep)
    assert advice.rate is None
    assert reason in advice.reason
    assert advice.again == again


def test_noise_alone_hardly_ever_gets_a_guess() -> None:
    sweep = Sweep()
    guesses = [advise(curve(lambda at: 2.3, sweep, 0.1, seed), sweep).rate for seed in range(150)]
    assert sum(rate is not None for rate in guesses) <= 1


@pytest.mark.parametrize(
    "values",
    [{"low": 0}, {"low": -1}, {"low": 1.0, "high": 1.0}, {"high": 101}, {"low": math.nan}, {"high": math.inf}],
)
def test_rates_that_make_no_sweep_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match="0 < --low < --high <= 100"):
        Sweep(**values)  # type: ignore[arg-type]


def test_the_limits_are_those_of_the_config_and_of_the_command_line() -> None:
    assert asdict(Sweep()) == DEFAULTS
    assert validate({"optim": {"lr": LARGEST_RATE}}).optim.lr == LARGEST_RATE
    with pytest.raises(UserError, match=r"optim\.lr"):
        validate({"optim": {"lr": LARGEST_RATE * 1.01}})


@pytest.mark.parametrize("plain", [True, False])
def test_the_drawn_curve_has_its_extremes_where_they_belong(plain: bool) -> None:
    points = curve(valley(-3, -1), Sweep())
    lines = curve_lines([(point.learning_rate, point.smoothed) for point in points], 1e-3, plain)
    assert "\n".join(lines).isascii() == plain
    assert all(len(line) <= 10 + WIDTH for line in lines)
    drawn = [line[10:].ljust(WIDTH) for line in lines[:HEIGHT]]
    assert all(any(row[column] != " " for row in drawn) for column in range(WIDTH)), "a gap in the curve"
    assert lines[0].startswith("   >3.45 |")  # 1.5 times the first loss
    assert drawn[0].rstrip() == drawn[0]  # it ends at the top right
    lowest = min(points, key=lambda point: point.smoothed)
    assert f"{lowest.smoothed:.3g} |" in lines[HEIGHT - 1]
    last = math.log10(points[-1].learning_rate)
    assert lines[HEIGHT + 1].index("^") - 10 == pytest.approx(3 / (last + 6) * (WIDTH - 1), abs=1)


def test_a_flat_curve_and_two_points_can_be_drawn() -> None:
    assert len(curve_lines([(1e-3, 2.0), (1e-2, 2.0)], None, plain=False)) == HEIGHT + 2


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_lr_find_through_the_command_line(convsmith: Callable[..., Any], tmp_path: Path) -> None:
    """Files, figures, suggestion; and a training after it is the training without it."""
    train = ["train", *QUICK, "--epochs", "2", "--data.limit", "400", "--schedule.name", "one-cycle"]
    assert main([*train, "--runs-dir", str(tmp_path / "runs"), "--name", "before"]) == 0
    done = convsmith("lr-find", *train[1:], "--steps", "60")
    assert main([*train, "--runs-dir", str(tmp_path / "runs"), "--name", "after"]) == 0
    run = tmp_path / "runs" / "digits-simple-cnn-lr-find-1"
    before, after = (tmp_path / "runs" / name for name in ("before", "after"))
    there = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    figures = {"figures/lr_find.svg", "figures/lr_find.png"}
    assert there == {"config.yaml", "environment.json", "splits.json", "lr_find.csv", "log.txt", *figures}
    assert (run / "config.yaml").read_bytes() == (before / "config.yaml").read_bytes()
    assert (run / "splits.json").read_bytes() == (before / "splits.json").read_bytes()
    weights = "model/model.safetensors"
    assert (before / weights).read_bytes() == (after / weights).read_bytes()

    rows = table(run / "lr_find.csv")
    assert list(rows[0]) == ["step", "learning_rate", "loss", "smoothed"]
    assert float(rows[0]["learning_rate"]) == 1e-6
    (suggested,) = (line for line in done.stdout.splitlines() if "is suggested" in line)
    rate = suggested.split()[1]
    assert float(rows[0]["learning_rate"]) <= float(rate) <= float(rows[-1]["learning_rate"])
    assert f"suggested: {rate}" in (run / "log.txt").read_text()
    assert done.stdout.splitlines()[-1].endswith(f"--lr {rate}")


def test_the_same_command_gives_the_same_curve_and_sees_train_images_alone(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, several = Subset.gather, Subset.gathered
    seen: set[str] = set()

    def gather(self: Subset, positions: Any) -> Any:
        seen.update(np.array(self.ids)[positions].tolist())
        return one(self, positions)

    def gathered(self: Subset, parts: Any) -> Any:
        seen.update(np.array(self.ids)[np.concatenate(parts)].tolist())
        return several(self, parts)

    monkeypatch.setattr(Subset, "gather", gather)
    monkeypatch.setattr(Subset, "gathered", gathered)
    command = ["lr-find", *QUICK, "--augment.mixup", "0.2", "--model.dropout", "0.2", "--steps", "40"]
    assert main([*command, "--name", "a"]) == 0
    splits = json.loads(Path("runs/a/splits.json").read_text())["splits"]
    assert seen == set(splits["train"])
    assert main([*command, "--name", "b"]) == 0
    assert Path("runs/a/lr_find.csv").read_bytes() == Path("runs/b/lr_find.csv").read_bytes()


def test_the_next_command_repeats_what_was_given(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*QUICK, "--preset", "digits", "--lr", "0.5", "--runs-dir", "my runs", "--augment.hflip"]
    assert main(["lr-find", *given, "--name", "first"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    _, _, verb, *words = shlex.split(last)
    assert verb == "train"
    args = verb_parser("train").parse_all(words)
    assert (args.runs_dir, args.name) == ("my runs", None)
    wanted = read_settings(verb_parser("lr-find").parse_all(given)).config
    assert read_settings(args).config == wanted.with_values(optim={"lr": float(words[-1])})

    assert main(["lr-find", *given, "--high", "1e-4"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    _, _, verb, *words = shlex.split(last)
    assert (verb, words[-2:]) == ("lr-find", ["--high", "0.01"])
    again = verb_parser("lr-find").parse_all(words)
    assert (again.low, again.steps) == (DEFAULTS["low"], DEFAULTS["steps"])
    assert read_settings(again).config == wanted.with_values(optim={"lr": read_settings(again).config.optim.lr})


def test_a_signal_leaves_nothing_behind(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = lr_find.step
    taken = 0

    def step(*arguments: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        original(*arguments)

    monkeypatch.setattr(lr_find, "step", step)
    assert main(["lr-find", *QUICK, "--name", "stopped"]) == 143
    assert taken == 5
    assert "interrupted: nothing was written" in capsys.readouterr().out
    assert list(Path("runs").iterdir()) == []


def test_a_net_that_gives_no_numbers_fails_and_leaves_nothing_behind(tmp_path: Path) -> None:
    prepared = setup.prepare(validate({"data": {"source": "digits"}, "train": {"threads": 1, "layout": "contiguous"}}))
    with torch.no_grad():
        for parameter in prepared.model.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(RunFailed, match="not a finite number at step 1, although the learning rate is only 1e-06"):
        find(prepared, tmp_path, Sweep())
    assert list(tmp_path.iterdir()) == []


MISTAKES = [
    ("lr-find --name taken", "run 'runs/taken' exists already"),
    ("lr-find --optim.lrr 1", "unknown flag '--optim.lrr'. Did you mean '--optim.lr'?"),
    ("lr-find --optim.name adma", "Did you mean 'adam'?"),
    ("lr-find --low 1 --high 0.1", "lr-find needs 0 < --low < --high <= 100, but got --low 1 --high 0.1"),
    ("lr-find --low fast", "--low: invalid float value: 'fast'"),
    ("lr-find --steps 5", "--steps must be at least 30, but got 5"),
    ("lr-find --name a/b", "plain folder name"),
    ("lr-fnd", "Did you mean 'lr-find'?"),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_mistakes_are_one_line_with_exit_code_2(
    inside: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    Path("runs/taken").mkdir(parents=True)
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(Path("runs").iterdir()) == [Path("runs/taken")]
