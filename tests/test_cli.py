"""Each verb through the real command line, and each mistake as one line with exit code 2."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convsmith import files
from convsmith.cli import main, verbs
from convsmith.config import read_run_config

QUICK = "--epochs 1 --data.limit 300 --train.threads 1".split()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, runs/digits, and one image."""
    folder = tmp_path_factory.mktemp("werkstätte")  # a name that is not ASCII
    command = [
        sys.executable,
        "-m",
        "convsmith.cli",
        "train",
        "--epochs",
        "3",
        "--name",
        "digits",
        "--track.wandb",
        "off",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout, encoding="utf-8")
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(folder / "bild-ä.png")
    return folder


@pytest.fixture
def inside(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def call(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Run a command in this process; its output, which is one line on stderr where it fails."""
    capsys.readouterr()
    result = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert result == code, out + err
    if code:
        assert len(err.splitlines()) == 1, err
        assert "Traceback" not in err
    return err if code else out


def test_train_leaves_the_files_of_the_interface(workplace: Path) -> None:
    run = workplace / "runs" / "digits"
    for name in (
        "config.yaml",
        "environment.json",
        "splits.json",
        "metrics.csv",
        "summary.json",
        "evaluation-val.json",
        "predictions-val.csv",
        "model/model.safetensors",
        "model/model.json",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
        "figures/curves.png",
        "figures/confusion.png",
        "log.txt",
    ):
        assert (run / name).stat().st_size > 0, name
    assert not (run / "test-access.jsonl").exists(), "training opened the test split"
    summary = json.loads((run / "summary.json").read_text())
    evaluation = json.loads((run / "evaluation-val.json").read_text())
    assert summary["val"]["accuracy"] == evaluation["accuracy"]
    assert {"best_epoch", "epochs", "parameters", "seconds", "images_per_second", "stopped_because"} <= summary.keys()
    rows = table(run / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    best = max(rows, key=lambda row: float(row["val_accuracy"]))
    assert float(best["val_accuracy"]) == evaluation["accuracy"]
    output = (workplace / "output.txt").read_text()
    assert sum(line.strip().startswith(("1/3", "2/3", "3/3")) for line in output.splitlines()) == 3
    assert "next: convsmith evaluate runs/digits --split test" in output


def test_predictions_and_evaluation_agree_exactly(workplace: Path) -> None:
    run = workplace / "runs" / "digits"
    evaluation = json.loads((run / "evaluation-val.json").read_text())
    rows = table(run / "predictions-val.csv")
    assert len(rows) == evaluation["n"]
    assert sum(row["label"] == row["predicted"] for row in rows) / len(rows) == evaluation["accuracy"]
    for row in rows:
        chances = {name: float(row[f"p_{name}"]) for name in evaluation["classes"]}
        assert max(chances, key=lambda name: chances[name]) == row["predicted"]
    ids = json.loads((run / "splits.json").read_text())["splits"]["val"]
    assert [row["id"] for row in rows] == ids


def test_evaluate_opens_the_test_split_and_notes_it(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    access = inside / "runs/digits/test-access.jsonl"
    before = len(access.read_text().splitlines()) if access.exists() else 0
    call(capsys, "evaluate", "runs/digits")
    assert not access.exists() or len(access.read_text().splitlines()) == before
    out = call(capsys, "evaluate", "runs/digits", "--split", "test")
    lines = access.read_text().splitlines()
    assert len(lines) == before + 1
    assert json.loads(lines[-1])["command"] == "convsmith evaluate runs/digits --split test"
    record = json.loads((inside / "runs/digits/evaluation-test.json").read_text())
    assert record["n"] == 359
    assert f"{record['accuracy']:.2%}" in out


def test_evaluating_val_again_gives_what_train_wrote(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (inside / "runs/digits/evaluation-val.json").read_bytes()
    call(capsys, "evaluate", "runs/digits")
    assert (inside / "runs/digits/evaluation-val.json").read_bytes() == before


def test_the_resolved_config_repeats_the_run(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "train", "runs/digits/config.yaml", "--name", "again")
    first, second = (inside / "runs" / name / "model/model.safetensors" for name in ("digits", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_predict_writes_csv_and_json_that_agree(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "photos").mkdir()
    for number in range(3):
        Image.fromarray(np.full((20, 14, 3), 80 * number, np.uint8)).save(inside / f"photos/{number}.jpg")
    out = call(
        capsys, "predict", "runs/digits", "bild-ä.png", "photos", "photos/*.jpg", "--out", "p.csv", "--top-k", "2"
    )
    assert "bild-ä.png" in out
    call(capsys, "predict", "runs/digits", "bild-ä.png", "photos", "photos/*.jpg", "--out", "p.json")
    rows = table(inside / "p.csv")
    values = json.loads((inside / "p.json").read_text(encoding="utf-8"))
    assert len(rows) == 7
    assert [row["id"] for row in rows] == [value["id"] for value in values]
    for row, value in zip(rows, values, strict=True):
        assert row == {key: "" if cell is None else str(cell) for key, cell in value.items()}


def test_predict_shows_the_first_rows_of_a_file_and_nothing_if_quiet(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = ["bild-ä.png"] * 30
    out = call(capsys, "predict", "runs/digits", *many, "--out", "many.csv", "--features", "many.npz")
    assert len(table(inside / "many.csv")) == 30
    assert len(re.findall("^bild-ä.png", out, flags=re.MULTILINE)) == 20
    assert re.search(r"^30 images: 30 \d", out, flags=re.MULTILINE)
    assert call(capsys, "predict", "runs/digits", *many, "--quiet") == ""


def test_predict_names_a_file_that_cannot_be_read_and_predicts_the_rest(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inside / "broken.jpg").write_bytes(b"nothing of an image")
    error = call(capsys, "predict", "runs/digits", "bild-ä.png", "broken.jpg", "--out", "some.csv", code=2)
    assert "1 of 2 files could not be read" in error
    assert "broken.jpg" in error
    assert [bool(row["error"]) for row in table(inside / "some.csv")] == [False, True]


def test_summary_shows_the_studys_example(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = call(capsys, "summary", "--preset", "study-example")
    assert "(32 - 3 + 2*0)/1 + 1 = 30" in out
    assert "(30 - 2 + 2*0)/2 + 1 = 15" in out
    assert "32*15*15 = 7200" in out


def test_summary_of_a_run_and_of_flags(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = json.loads((inside / "runs/digits/summary.json").read_text())["parameters"]
    assert f"{parameters:,} parameters" in call(capsys, "summary", "runs/digits")
    assert "blocks.2.conv" in call(
        capsys, "summary", "--model", "convnet", "--model.blocks", "[{channels: 4}, {channels: 4}, {channels: 8}]"
    )


def test_the_next_command_of_summary_repeats_what_was_given(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = call(capsys, "summary", "--model", "convnet", "--model.blocks", "[{channels: 4}]", "--epochs", "3")
    assert out.splitlines()[-1] == "next: convsmith train --model convnet --model.blocks '[{channels: 4}]' --epochs 3"
    out = call(capsys, "summary", "--preset", "study-example")
    assert out.splitlines()[-1] == "next: convsmith train --preset study-example"


def test_data_check_lists_what_is_broken(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = inside / "set"
    rng = np.random.default_rng(0)
    for name in ("ants", "bees"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    (root / "ants/empty.png").write_bytes(b"")
    shutil.copy(root / "ants/0.png", root / "bees/copy.png")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    out = call(capsys, "data", "check", root, code=0)
    assert out.endswith(" --data.on_error skip\n")  # without it, the training would stop
    assert "empty.png" in out
    assert "copy.png" in out
    error = call(capsys, "train", "--data", root, "--epochs", "1", code=2)
    assert "ants/empty.png (empty)" in error
    assert "--data.on_error skip" in error
    call(capsys, "train", "--data", root, "--data.on_error", "skip", "--epochs", "1", "--name", "skipped")
    assert len(json.loads((inside / "runs/skipped/skipped.json").read_text())["files"]) == 1
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_presets_and_doctor(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "study-example" in call(capsys, "presets")
    assert "channels: 32" in call(capsys, "presets", "study-example")
    doctor = call(capsys, "doctor")
    for word in ("torch", "devices", "threads", "cache", "W&B"):
        assert word in doctor


def test_print_config_is_the_config(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, "train", "--lr", "0.5", "--print-config")
    (inside / "printed.yaml").write_text(text)
    assert "lr: 0.5" in text
    assert call(capsys, "train", "printed.yaml", "--print-config") == text


@pytest.mark.parametrize("preset", ["linear-probe", "finetune"])
def test_print_config_of_a_preset_names_the_network_that_would_be_trained(
    inside: Path, capsys: pytest.CaptureFixture[str], preset: str
) -> None:
    assert main(["train", "--data", "digits", "--preset", preset, "--print-config"]) == 0
    printed = capsys.readouterr()
    (inside / "printed.yaml").write_text(printed.out)
    config = read_run_config(inside / "printed.yaml")
    assert config.model.is_library
    assert printed.err.startswith(f"network: {config.model.name}")


def test_version_completion_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version").startswith("convsmith 0.")
    assert "--optim.lr" in call(capsys, "--print-completion", "zsh")
    for verb in verbs():
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
        assert f"convsmith {verb}" in capsys.readouterr().out


def test_commands_to_paste_are_quoted(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(inside / "runs/digits", inside / "runs/my run")
    assert "next: convsmith predict 'runs/my run' IMAGE..." in call(capsys, "evaluate", "runs/my run")
    assert "convsmith resume 'runs/my run'" in call(capsys, "train", "--name", "my run", code=2)
    assert "next: convsmith evaluate 'runs/my run' --split test" in call(capsys, "resume", "runs/my run")
    call(capsys, "evaluate", "runs/my run", "--split", "test")
    opened = json.loads((inside / "runs/my run/test-access.jsonl").read_text().splitlines()[-1])
    assert opened["command"] == "convsmith evaluate 'runs/my run' --split test"
    shutil.rmtree(inside / "runs/my run")


def test_predict_looks_into_folders_that_a_pattern_matches(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("batch 1", "batch 2"):
        (inside / folder).mkdir()
        shutil.copy(inside / "bild-ä.png", inside / folder / "one.png")
    out = call(capsys, "predict", "runs/digits", "batch*")
    assert "batch 1/one.png" in out
    assert "batch 2/one.png" in out
    assert "next: convsmith explain runs/digits 'batch 1/one.png'" in out


@pytest.fixture
def unfinished(inside: Path) -> Iterator[Path]:
    """A copy of the run that has all but its end, runs/unfinished."""
    run = inside / "runs/unfinished"
    shutil.copytree(inside / "runs/digits", run)
    (run / "summary.json").unlink()
    yield run
    shutil.rmtree(run)


DAMAGES: list[tuple[str, bytes | None, str]] = [  # file, its content (none: it is gone), what resume says
    ("config.yaml", b"", "config.yaml' is damaged (it has no section data, model"),
    ("splits.json", b"{}", "splits.json' is damaged (hash: Field required)"),
    (
        "splits.json",
        b'{"hash": "x", "splits": []}',
        "splits.json' is damaged (splits: Input should be",
    ),
    ("splits.json", None, "splits.json' is missing"),
    ("metrics.csv", b"\xff\0junk\n1,2\n3,4\n", "metrics.csv' is damaged (it is not a table of numbers)"),
    ("checkpoints", None, "has no checkpoints to resume from"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGES, ids=[f"{d[0]} {d[1]!r}" for d in DAMAGES])
def test_a_damaged_run_is_refused_in_one_line(
    unfinished: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, message: str
) -> None:
    if content is None:
        shutil.move(unfinished / name, unfinished.parent / "lost")
    else:
        (unfinished / name).write_bytes(content)
    assert message in call(capsys, "resume", "runs/unfinished", code=2)
    lost = unfinished.parent / "lost"
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink(missing_ok=True)


def test_resume_says_what_was_changed_behind_its_back(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = unfinished / "config.yaml"
    config.write_text(config.read_text().replace("\n  seed: 0", "\n  seed: 5"))
    lines = (unfinished / "metrics.csv").read_text().splitlines(keepends=True)
    (unfinished / "metrics.csv").write_text("".join(lines[:-1]))
    out = call(capsys, "resume", "runs/unfinished")
    assert "config.yaml has changed since the start (train.seed 0 -> 5)" in out
    assert "metrics.csv has lost rows: 2 of 3 epochs are left" in out


def test_a_run_that_cannot_be_locked_is_named(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (unfinished / ".lock").unlink(missing_ok=True)
    (unfinished / ".lock").mkdir()
    assert "cannot write run 'runs/unfinished'" in call(capsys, "resume", "runs/unfinished", code=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_of_a_training_clears_up_and_ends_with_its_code(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleared = []

    def work(args: object) -> int:
        try:
            signal.raise_signal(number)
        finally:
            cleared.append(True)
        return 0

    monkeypatch.setattr("convsmith.verbs.presets.run", work)
    before = signal.getsignal(number)
    assert call(capsys, "presets", code=128 + number) == "terminated\n"
    assert cleared
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tra", "train"),
        ("train --optim.na", "--optim.name"),
        ("train --optim.name ada", "adam adamw adagrad"),
        ("train --preset dig", "digits"),
        ("evaluate --split te", "test"),
        ("train --data run", "runs"),
    ],
)
def test_completion_in_bash(inside: Path, capsys: pytest.CaptureFixture[str], typed: str, offered: str) -> None:
    words = ["convsmith", *typed.split()]
    script = call(capsys, "--print-completion", "bash") + (
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        f"_shtab_convsmith convsmith {words[-1]} {words[-2]}; echo ${{COMPREPLY[*]}}"
    )
    done = subprocess.run(["bash", "-c", script], cwd=inside, capture_output=True, text=True, check=False)
    assert done.stdout.split() == offered.split(), done.stderr


MISTAKES = [
    ("trian", "unknown verb 'trian'. Did you mean 'train'?"),
    ("train --optim.lrr 1", "unknown flag '--optim.lrr'. Did you mean '--optim.lr'?"),
    ("train --pretrained", "unknown flag '--pretrained'. Did you mean '--transfer.weights'?"),
    ("train --arch resnet18", "unknown flag '--arch'. Did you mean '--model.name'?"),
    ("train --model resnet18", "write --model torchvision/resnet18 or timm/resnet18"),
    ("runs --weights a", "unknown flag '--weights'. (see"),
    ("train --lr -1", "optim.lr: input should be greater than 0"),
    ("train --lr", "--lr: expected one argument"),
    ("train --preset baselin", "preset 'baselin' does not exist. Did you mean 'baseline'?"),
    ("train --model simple-cn", "model 'simple-cn' does not exist. Did you mean 'simple-cnn'?"),
    ("train --model torchvision/resnet19", "Did you mean 'resnet18'?"),
    ("train --data digit", "data.source 'digit' does not exist. Did you mean 'digits'?"),
    ("train --data ./nowhere", "data.source './nowhere' does not exist"),
    ("train nowhere.yaml", "config file 'nowhere.yaml' does not exist"),
    ("train --name digits", "exists already"),
    ("train --name a/b", "plain folder name"),
    ("train --device tpu", "train.device: 'tpu' is not a choice"),
    ("train --device cuda", "this machine has no 'cuda'"),
    ("train --model convnet --model.blocks [{'channels':4,'kernel':11}]", "block 1 conv: (8 - 11 + 2*1)/1 + 1 = 0"),
    ("train --model.blocks [{'channels':4}]", "has no effect on 'simple-cnn'"),
    ("train --model.blocks [{channels:4}]", "unknown key 'model.blocks.0.channels:4'. Did you mean 'channels'?"),
    ("train a.yaml b.yaml", "unexpected argument 'b.yaml'"),
    ("resume runs/digitz", "run 'runs/digitz' does not exist. Did you mean 'runs/digits'? Runs in 'runs': "),
    ("evaluate runs/nothing", "does not exist"),
    ("evaluate runs", "is not a run directory"),
    (
        "evaluate runs/digits --split tset",
        "--split: 'tset' is not a choice. Did you mean 'test'? Choices: train, val, test",
    ),
    ("predict runs/digits nofile.png", "no file matches 'nofile.png'"),
    ("train --augment.cutout 8", "augment.cutout 8 leaves nothing of an image of 8 x 8 pixels"),
    ("train --augment.shift 9", "augment.shift 9 leaves nothing of an image of 8 x 8 pixels"),
    ("predict runs/digits ''", "no file matches ''"),
    ("predict runs/digits **x", "no file matches '**x'"),
    ("predict runs/digits output.txt", "none of 1 files could be read: output.txt: not-an-image"),
    ("train --data ''", "data.source: must be a name or a path, or a list of them"),
    ("train --data.background nocolour", "data.background 'nocolour' is not a colour"),
    ("train --optim.betas 0.9", "optim.betas: must be a list, for example '[0.9, 0.99]'"),
    ("train runs/digits", "the config of that run is runs/digits/config.yaml"),
    ("predict runs/digits bild-ä.png --top-k 0", "--top-k must be at least 1"),
    ("predict runs/digits bild-ä.png --out p.txt", "must end in .csv or .json"),
    ("predict runs/digits bild-ä.png --threshold 2", "--threshold must lie between 0 and 1, but got 2"),
    ("predict runs/digits bild-ä.png --features f.csv", "must end in .npz or .parquet"),
    ("train --resume", "--resume goes with --name"),
    ("predict runs/digits", "the following arguments are required: PATH"),
    ("presets strnog", "preset 'strnog' does not exist"),
    ("data digits", "for data of that name: convsmith data check digits"),
    ("data chekc digits", "action: 'chekc' is not a choice. Did you mean 'check'?"),
    ("data check ./nowhere", "data.source './nowhere' does not exist"),
    ("train --data run", "data.source 'run' does not exist. Did you mean 'runs'?"),
    ("train --data runs/digitz", "was not found: there is no such file or folder. Did you mean 'runs/digits'?"),
    ("train --data photos/x.npz", "'photos/x.npz' was not found: there is no such file or folder"),
    ("train runs/digits/confg.yaml", "confg.yaml' does not exist. Did you mean 'runs/digits/config.yaml'?"),
    ("predict runs/digits bild-a.png", "no file matches 'bild-a.png'. Did you mean 'bild-ä.png'?"),
    ("train --preset finetune --transfer.weights runs/digit", "does not exist. Did you mean 'runs/digits'? Give none"),
    ("train --set optim.lr=0.1", "unknown flag '--set'. Each setting is a flag of its own, such as --optim.lr 0.01."),
    ("summary --preset strnog", "does not exist"),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_mistakes_are_one_line_with_exit_code_2(
    inside: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    runs = sorted(path.name for path in (inside / "runs").iterdir())
    assert message in call(capsys, *(word.replace("''", "") for word in command.split()), code=2)
    assert sorted(path.name for path in (inside / "runs").iterdir()) == runs, "a mistake left a run directory"


def test_a_single_class_an_empty_class_and_other_classes_in_test(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.fromarray(np.zeros((8, 8), np.uint8))
    for place in ("one/a/1.png", "hollow/a/1.png", "hollow/b/1.png", "other/train/a/1.png", "other/train/b/1.png"):
        (inside / place).parent.mkdir(parents=True, exist_ok=True)
        image.save(inside / place)
    (inside / "hollow/c").mkdir()
    (inside / "other/test/z").mkdir(parents=True)
    image.save(inside / "other/test/z/1.png")
    assert "single class" in call(capsys, "train", "--data", "./one", code=2)
    assert "'c'" in call(capsys, "train", "--data", "./hollow", code=2).replace("hollow/c", "'c'")
    assert "z" in call(capsys, "train", "--data", "./other", code=2)


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        "train --name diverged --model.norm none --model.activation leaky_relu --optim.name sgd --lr 100 "
        "--schedule.name constant"
    )
    error = call(capsys, *command.split(), "--epochs", "3", "--train.log_every", "1", "--train.threads", "1", code=1)
    assert "the loss is not a finite number at step" in error
    assert "learning rate 100" in error
    assert "--lr (for example 10)" in error
    from convsmith.training import checkpoint

    tensors, _, remark = checkpoint.read_newest(inside / "runs/diverged/checkpoints")
    assert remark is None
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())


def test_a_run_in_use_is_refused(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/digits", "runs/busy")
    Path("runs/busy/summary.json").unlink()
    holder = f"""
import sys
from pathlib import Path
from convsmith.rundir import RunDir
with RunDir(Path({str(inside / "runs/busy")!r})).lock():
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert "in use by another process" in call(capsys, "resume", "runs/busy", code=2)
        process.communicate("")


def test_a_full_and_a_read_only_disk_are_told_and_lose_nothing(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    original, left = os.fsync, 20

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        error = call(capsys, "train", "--name", "full", "--epochs", "3", "--train.threads", "1", code=2)
    assert "the disk is full" in error
    call(capsys, "resume", "runs/full")
    first, second = (inside / "runs" / name / "model/model.safetensors" for name in ("digits", "full"))
    assert second.stat().st_size == first.stat().st_size
    error = call(capsys, "train", "--runs-dir", "/proc/runs", code=2)
    assert "/proc/runs" in error


def test_data_that_changed_is_refused(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        (inside / "moving" / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(inside / f"moving/{name}/{number}.png")
    call(capsys, "train", "--data", "./moving", "--epochs", "1", "--name", "moving")
    shutil.copy("moving/a/1.png", "moving/a/new.png")
    assert "has changed" in call(capsys, "evaluate", "runs/moving", "--split", "test", code=2)
    assert not Path("runs/moving/test-access.jsonl").exists()


def test_a_damaged_model_is_refused(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/digits", "runs/damaged")
    weights = Path("runs/damaged/model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "is damaged" in call(capsys, "predict", "runs/damaged", "bild-ä.png", code=2)


def test_a_write_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def refuse(*_: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="no"):
            files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
