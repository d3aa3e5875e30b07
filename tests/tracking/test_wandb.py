"""Against the real wandb in a process of its own; what was tracked is read back with wandb's own reader."""

import importlib.util
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from convsmith.contracts import Tracker
from convsmith.tracking import wandb as tracking
from convsmith.tracking.config import TrackConfig
from convsmith.tracking.csv import COLUMNS
from convsmith.tracking.null import NullTracker
from convsmith.tracking.wandb import WandbTracker, grouped, open_tracker, watched, watching

OFFLINE = TrackConfig(wandb="offline", group="folds")
ROWS = [
    {"epoch": epoch, "train_loss": 1 / 3 / epoch, "val_accuracy": 0.1 * epoch, "learning_rate": 1e-3 / 7**epoch}
    for epoch in range(1, 6)
]
UNREACHABLE = "http://127.0.0.1:9"  # the discard port: nothing listens

LEET = importlib.util.find_spec("wandb.cli.leet") is not None

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds wandb's service through /proc")


@pytest.fixture(autouse=True)
def stranger(monkeypatch, tmp_path_factory):
    """A user whom W&B does not know."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def warned():
    return []


def records(run_dir):
    """All records of all W&B runs of a run directory, as wandb's own reader gives them, oldest run first."""
    files = sorted(run_dir.glob("wandb/*run-*/*.wandb"))
    return [record for file in files for record in (printed(file) if LEET else scanned(file))]


def printed(file):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    return map(json.loads, subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


def scanned(file):
    """The same with the reader that wandb had before `wandb leet inspect`."""
    from google.protobuf.json_format import MessageToDict
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    def plain(items):
        flat = {}
        for item in items:
            value = json.loads(item["value_json"])
            nested = value.items() if isinstance(value, dict) and "_type" in value else ()
            flat |= {f"{item['key']}.{name}": part for name, part in nested} or {item["key"]: value}
        return flat

    store = DataStore()
    store.open_for_scan(str(file))
    while data := store.scan_data():
        message = Record.FromString(data)
        kind = message.WhichOneof("record_type")
        fields = {"exit_code": 0} if kind == "exit" else {}
        fields |= MessageToDict(getattr(message, kind), preserving_proto_field_name=True)
        if kind == "history":
            fields["item"] = plain(fields["item"])
        elif kind == "summary":
            fields["update"] = plain(fields.get("update", []))
        elif kind == "run" and "config" in fields:
            fields["config"]["update"] = plain(fields["config"]["update"])
        yield {"type": kind, kind: fields}
    store.close()


def epochs(found):
    """The rows of epochs, by the names of metrics.csv."""
    items = [record["history"]["item"] for record in found if record["type"] == "history"]
    return [{name: item.get(grouped(name)) for name in (*ROWS[0], "step")} for item in items if "epoch" in item]


def exit_codes(found):
    return [record["exit"]["exit_code"] for record in found if record["type"] == "exit"]


def log_all(tracker):
    for row in ROWS:
        tracker.log(row, step=391 * row["epoch"])


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def fake_wandb(monkeypatch, folder, code):
    """A wandb that does as `code` says, found before the real one."""
    (folder / "wandb").mkdir(parents=True)
    (folder / "wandb" / "__init__.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(folder)


def image(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def random_states():
    legacy = np.random.get_state()
    return random.getstate(), legacy[1].tolist(), legacy[2:], torch.get_rng_state().tolist()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run tracked offline, with all that can be logged, then resumed."""
    run_dir = tmp_path_factory.mktemp("läufe") / "my run"
    run_dir.mkdir()
    warnings, states = [], random_states()
    config = {"data": {"source": "digits"}, "optim": {"lr": 0.1}}
    tracker = open_tracker(OFFLINE, run_dir, "my run", config, None, warnings.append)
    log_all(tracker)
    figure = Figure()
    figure.subplots().plot([1, 2])
    samples = [(image(0), "cat 90%"), (image(1)[:, :, :1], "Wüste 40%")]
    tracker.log({"confusion": figure, "samples": samples, "lost": math.nan, "scalar": np.float64(0.1)}, 2000)
    tracker.close({"best_epoch": 5, "val": {"accuracy": 0.5}})
    same = random_states() == states
    resumed = open_tracker(OFFLINE, run_dir, "my run", config, tracker.run_id, warnings.append)
    resumed.log({"epoch": 6}, step=391 * 6)
    resumed.close({"best_epoch": 6})
    return run_dir, tracker, resumed, warnings, same, records(run_dir)


def test_wandb_reads_back_every_epoch_exactly(finished):
    *_, found = finished
    assert epochs(found)[: len(ROWS)] == [row | {"step": 391 * row["epoch"]} for row in ROWS]


def test_wandb_reads_back_config_and_summary(finished):
    *_, found = finished
    run = next(record["run"] for record in found if record["type"] == "run")
    assert (run["display_name"], run["project"], run["run_group"]) == ("my run", "convsmith", "folds")
    assert run["config"]["update"]["data"] == {"source": "digits"}
    summaries = [record["summary"]["update"] for record in found if record["type"] == "summary"]
    assert [summary["best_epoch"] for summary in summaries if "best_epoch" in summary] == [5, 6]
    assert "val" not in {name for summary in summaries for name in summary}
    shown = [summary["val/accuracy"] for summary in summaries if "val/accuracy" in summary]
    assert shown[-1] == 0.5, "of the epoch that is kept, in place of the last one"
    assert exit_codes(found) == [0, 0]


def test_charts_are_grouped_and_run_over_epochs_or_steps(finished):
    *_, found = finished
    metrics = [record["metric"] for record in found if record["type"] == "metric"]
    axes = {metric["glob_name"]: metric["step_metric"] for metric in metrics if "glob_name" in metric}
    assert axes == {"train/*": "epoch", "val/*": "epoch", "step/*": "step"}
    logged = {name for record in found if record["type"] == "history" for name in record["history"]["item"]}
    assert {name.partition("/")[0] for name in logged if not name.startswith("_")} == {"epoch", "step", "train", "val"}


def test_every_column_of_metrics_csv_has_a_name_of_its_own_in_a_group():
    names = [grouped(name) for name in (*COLUMNS, "step", "step_loss", "step_learning_rate")]
    assert len(set(names)) == len(names)
    pairs = {"train_loss": "train/loss", "val_f1": "val/f1", "learning_rate": "train/learning_rate"}
    pairs |= {"clean_train_loss": "train/clean_loss", "step_loss": "step/loss", "epoch": "epoch"}
    assert {name: grouped(name) for name in pairs} == pairs


def test_how_to_watch_a_run_is_known_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "wandb leet runs/x/wandb"
    for mode, expected in [("offline", command), ("auto", command), ("online", None), ("off", None)]:
        assert watched(TrackConfig(wandb=mode), Path("runs/x")) == expected
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert watched(TrackConfig(wandb="auto"), Path("runs/x")) is None
    assert watched(TrackConfig(wandb="offline"), Path("runs/x")) == command


def test_figures_and_samples_are_pictures_with_captions(finished):
    run_dir, *_, found = finished
    item = next(
        item["history"]["item"] for item in found if "val/samples.captions" in item.get("history", {}).get("item", {})
    )
    assert item["val/samples.captions"] == ["cat 90%", "Wüste 40%"]
    assert item["train/scalar"] == 0.1
    assert str(item["train/lost"]).lower() == "nan"
    (files,) = run_dir.glob("wandb/*run-*/files/media")
    with Image.open(next(files.parent.glob(item["val/samples.filenames"][0]))) as sample:
        np.testing.assert_array_equal(np.asarray(sample), image(0))
    with Image.open(files.parent / item["val/samples.filenames"][1]) as sample:
        np.testing.assert_array_equal(np.asarray(sample), image(1)[:, :, 0])
    with Image.open(files.parent / item["val/confusion.filenames"][0]) as drawing:
        assert drawing.size == (640, 480)


def test_a_resumed_run_is_the_same_wandb_run(finished):
    _, first, second, _, _, found = finished
    assert first.run_id == second.run_id
    runs = [record["run"] for record in found if record["type"] == "run"]
    assert [run["run_id"] for run in runs] == [first.run_id] * 2
    assert not LEET or all(run["resume"] for run in runs), "older ones do not record it offline"


def test_nothing_is_said_and_nothing_random_is_drawn(finished):
    _, _, _, warnings, same, _ = finished
    assert warnings == []
    assert same


def test_where_is_the_command_to_watch_the_run(finished):
    run_dir, tracker, *_ = finished
    assert tracker.where == f"wandb leet '{run_dir}/wandb'"


def test_the_command_to_watch_names_a_run_here_by_its_path_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert watching(tmp_path / "runs/my run/wandb") == "wandb leet 'runs/my run/wandb'"


def test_a_bad_key_and_no_network_end_offline(tmp_path, warned, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", UNREACHABLE)
    start = time.monotonic()
    tracker = open_tracker(TrackConfig(wandb="online"), tmp_path, "x", {}, None, warned.append)
    log_all(tracker)
    assert time.monotonic() - start < 1
    tracker.close({}, failed=True)
    assert len(warned) == 1
    assert "offline" in warned[0]
    assert "refused" in warned[0]
    found = records(tmp_path)
    assert epochs(found) == [row | {"step": 391 * row["epoch"]} for row in ROWS]
    assert exit_codes(found) == [1]
    assert capfd.readouterr() == ("", "")


def children(pid):
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


@needs_proc
@pytest.mark.parametrize("victim", ["wandb's service", "our process"])
def test_a_wandb_that_dies_costs_one_warning(victim, tmp_path, warned, capfd):
    tracker = open_tracker(OFFLINE, tmp_path, "x", {}, None, warned.append)
    until(lambda: tracker.where)
    own = tracker._process.pid
    services = children(own)
    assert services
    for pid in services if victim == "wandb's service" else [own]:
        os.kill(pid, signal.SIGKILL)

    def log_until_it_shows():
        start = time.monotonic()
        tracker.log(ROWS[0], step=1)
        assert time.monotonic() - start < 0.5
        return warned

    until(log_until_it_shows)
    start = time.monotonic()
    log_all(tracker)
    tracker.close({})
    assert time.monotonic() - start < 2
    assert len(warned) == 1
    assert warned[0].startswith("W&B lost this run")
    assert capfd.readouterr() == ("", "")
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in services))


def test_a_wandb_that_hangs_is_left_behind(tmp_path, warned, monkeypatch):
    fake_wandb(monkeypatch, tmp_path / "site", "import time; time.sleep(600)")
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.5)
    tracker = open_tracker(OFFLINE, tmp_path, "x", {}, None, warned.append)
    start = time.monotonic()
    for _ in range(200):  # far more than a pipe holds
        tracker.log({"samples": [(np.zeros((64, 64, 3), np.uint8), "x" * 1000)]}, 1)
    tracker.close({})
    assert time.monotonic() - start < 5
    assert warned == [
        f"W&B lost this run: it did not finish within 0.5 seconds. "
        f"metrics.csv is complete; W&B's part is in {tmp_path}/wandb"
    ]
    assert tracker._process.poll() is not None


def test_a_wandb_that_is_too_slow_is_given_up(tmp_path, warned, monkeypatch):
    fake_wandb(monkeypatch, tmp_path / "site", "import time; time.sleep(600)")
    monkeypatch.setattr(tracking, "PENDING", 5)
    tracker = open_tracker(OFFLINE, tmp_path, "x", {}, None, warned.append)
    for _ in range(20):
        tracker.log({"text": "x" * 100_000}, 1)
    tracker.close({})
    assert len(warned) == 1
    assert "does not keep up" in warned[0]


def test_a_wandb_that_is_broken(tmp_path, warned, monkeypatch):
    fake_wandb(monkeypatch, tmp_path / "site", "raise ImportError('libfoo is missing')")
    tracker = open_tracker(OFFLINE, tmp_path, "x", {}, None, warned.append)
    log_all(tracker)
    tracker.close({})
    assert len(warned) == 1
    assert "ImportError: libfoo is missing" in warned[0]


def test_a_process_that_does_not_start(tmp_path, warned, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    tracker = open_tracker(OFFLINE, tmp_path, "x", {}, "id5", warned.append)
    log_all(tracker)
    tracker.close({})
    assert isinstance(tracker, NullTracker)
    assert tracker.run_id == "id5"
    assert len(warned) == 1


def test_a_value_that_cannot_be_sent_costs_that_value(tmp_path, warned, monkeypatch):
    fake_wandb(monkeypatch, tmp_path / "site", "raise ImportError")
    tracker = open_tracker(OFFLINE, tmp_path, "x", {}, None, warned.append)
    tracker.log({"samples": [("no image", "caption")]}, 7)
    tracker.close({})
    assert warned[0].startswith("W&B did not receive samples of step 7")


@needs_proc
def test_a_run_that_is_killed_leaves_a_failed_wandb_run(tmp_path):
    code = """
        import os, signal, sys
        from pathlib import Path
        from convsmith.tracking.config import TrackConfig
        from convsmith.tracking.wandb import open_tracker
        tracker = open_tracker(TrackConfig(wandb="offline"), Path(sys.argv[1]), "x", {}, None, print)
        tracker.log({"epoch": 1}, step=10)
        print(tracker._process.pid, flush=True)
        while tracker.where is None: pass
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{int(done.stdout)}/exe").exists())
    found = records(tmp_path)
    assert [item["step"] for item in epochs(found)] == [10]
    assert exit_codes(found) == [1]


@pytest.mark.parametrize("config", ["off", "auto"])
def test_off(config, tmp_path, warned, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = open_tracker(TrackConfig(wandb=config), tmp_path, "x", {}, "id7", warned.append)
    log_all(tracker)
    tracker.close({})
    assert isinstance(tracker, NullTracker)
    assert (tracker.run_id, tracker.where, warned) == ("id7", None, [])
    assert list(tmp_path.iterdir()) == []


def test_both_are_trackers():
    """Holds for mypy: a method with another signature would not be assignable."""
    trackers: list[type[Tracker]] = [WandbTracker, NullTracker]
    assert all(callable(kind.log) and callable(kind.close) for kind in trackers)


AUTOMATIC = {
    "unknown user": ({}, None, "offline"),
    "key in the environment": ({"WANDB_API_KEY": "0" * 40}, None, "online"),
    "key in netrc": ({}, "api.wandb.ai", "online"),
    "key for another machine": ({}, "example.org", "offline"),
    "malformed key": ({"WANDB_API_KEY": "nonsense"}, None, "online"),
    "mode set": ({"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, None, "offline"),
    "own server": (
        {"WANDB_BASE_URL": "https://wandb.example.org"},
        "wandb.example.org",
        "online",
    ),
}


def test_automatic_mode(tmp_path):
    code = """
        import json, os, sys
        import wandb
        from convsmith.tracking.wandb_process import automatic_mode
        before, found = os.environ | {"WANDB_SILENT": "true"}, []
        for variables, netrc in json.loads(sys.argv[1]):
            os.environ.clear()
            os.environ.update(before | variables)
            netrc_file = os.path.join(os.environ["HOME"], ".netrc")
            if os.path.exists(netrc_file): os.remove(netrc_file)
            if netrc:
                with open(netrc_file, "w") as file: file.write(f"machine {netrc} login user password " + 40 * "0")
                os.chmod(netrc_file, 0o600)
            wandb.teardown()
            found.append(automatic_mode())
        print(json.dumps(found))
    """
    cases = json.dumps([(variables, netrc) for variables, netrc, _ in AUTOMATIC.values()])
    command = [sys.executable, "-c", textwrap.dedent(code), cases]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        start_new_session=True,
    )
    found = dict(zip(AUTOMATIC, json.loads(done.stdout), strict=True))
    assert found == {name: mode for name, (_, _, mode) in AUTOMATIC.items()}
