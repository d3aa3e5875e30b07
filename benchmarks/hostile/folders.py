"""Folders whose names, links and settings attack whoever works in them; downloads and caches with another content."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hostile import Base, Case
from hostile.documents import SHORT
from hostile.pickles import _legacy, _opcodes, _unfinished, _zip

TRAIN = ("train", "--data", "digits", "--model", "simple-cnn", *SHORT)
MODULES = (
    "argparse json yaml torch numpy random select socket string types typing threading multiprocessing pickle "
    "runpy queue signal sitecustomize usercustomize importlib encodings site wandb torchvision PIL convsmith optuna "
    "sqlite3 matplotlib uvicorn starlette subprocess ctypes platform zipimport colorsys"
).split()


def working_folders(base: Base) -> Iterator[Case]:
    """Commands started in a folder of others: in processes of their own, since what they import is the point."""

    def modules(folder: Path) -> None:
        for name in MODULES:
            (folder / f"{name}.py").write_text(f"import os\nos.system({base.touch!r})\n")
            (folder / f"{name}.pth").write_text(f"import os; os.system({base.touch!r})\n")

    def repository(folder: Path) -> None:
        def git(*words: str) -> None:
            subprocess.run(
                ["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e", *words],
                check=True,
                capture_output=True,
            )

        git("init")
        (folder / "file").write_text("1")
        (folder / ".gitattributes").write_text("* filter=mine diff=mine merge=mine")
        git("add", ".")
        git("commit", "-m", "first")
        (folder / ".git/info/attributes").write_text("* filter=mine diff=mine")
        for key in (
            "core.fsmonitor",
            "filter.mine.clean",
            "filter.mine.smudge",
            "filter.mine.process",
            "diff.mine.textconv",
            "diff.external",
            "core.sshCommand",
            "core.pager",
            "core.editor",
            "gpg.program",
            "credential.helper",
            "core.alternateRefsCommand",
            "uploadpack.packObjectsHook",
            "core.askPass",
            "remote.origin.uploadpack",
        ):
            git("config", key, f"{base.touch}; cat")
        for hook in ("post-index-change", "pre-commit", "post-checkout", "fsmonitor-watchman", "reference-transaction"):
            (folder / ".git/hooks" / hook).write_text(f"#!/bin/sh\n{base.touch}\n")
            (folder / ".git/hooks" / hook).chmod(0o755)
        (folder / "file").write_text("2")

    def settings(folder: Path) -> None:
        (folder / "matplotlibrc").write_text(
            f"backend: module://evil\ntext.usetex: True\ntext.latex.preamble: \\immediate\\write18{{{base.touch}}}\n"
            f"savefig.directory: {base.canary.parent}\nsvg.hashsalt: x\nanimation.ffmpeg_path: {base.canary}\n"
        )
        (folder / "evil.py").write_text(f"import os; os.system({base.touch!r})")
        (folder / "wandb").mkdir()
        (folder / "wandb/settings").write_text(
            "[default]\nbase_url = http://127.0.0.1:9\nprogram = evil.py\nmode = online\n"
        )
        for name in (
            "setup.cfg",
            "pyproject.toml",
            ".env",
            "pytest.ini",
            "conftest.py",
            ".pythonrc",
            "ray.yaml",
            "alembic.ini",
        ):
            (folder / name).write_text(f"import os; os.system({base.touch!r})")

    offline = tuple(word.replace("off", "offline") if word == "off" else word for word in TRAIN)
    workers = ("crossval", "--data", "digits", "--model", "simple-cnn", *SHORT, "--folds", "2", "--jobs", "2")
    for what, make, commands in (
        ("modules", modules, (workers, offline, ("doctor",))),
        ("a repository", repository, (TRAIN, ("doctor",))),
        ("settings", settings, (offline, ("explain", "{run}", "{image}"))),
    ):
        for argv in commands:
            yield Case(f"{what} where one works: {argv[0]}", argv, make=make, real=True)


def links(base: Base) -> Iterator[Case]:
    """Each entry of a run is a link to a file or folder of the user's, outside of it."""
    victim = base.canary.parent / "victim"
    verbs: tuple[tuple[str, ...], ...] = (
        ("evaluate", "{run}"),
        ("evaluate", "{run}", "--split", "test"),
        ("resume", "{run}"),
        ("report", "{run}"),
        ("explain", "{run}", "{image}"),
        ("export", "{run}", "--format", "onnx"),
        ("compare", "{run}", "{run}"),
    )
    files = (
        "log.txt test-access.jsonl evaluation-val.json evaluation-test.json predictions-val.csv predictions-test.csv "
        "report.html metrics.csv summary.json .lock checkpoints/last.safetensors checkpoints/previous.safetensors "
        "checkpoints/best.safetensors checkpoints/incoming.safetensors model/model.json model/model.safetensors "
        "export/model.onnx config.yaml environment.json"
    ).split()
    folders = "figures explain export checkpoints model wandb".split()
    for entry, target in [
        *((name, victim / "file") for name in files),
        *((name, victim / "folder") for name in folders),
    ]:

        def link(folder: Path, entry: str = entry, target: Path = target) -> None:
            place = folder / "run" / entry
            if entry in folders and place.exists():
                place.rename(place.with_name(f"{entry}-before"))
            place.unlink(missing_ok=True)
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(target)
            if entry != "summary.json":
                (folder / "run/summary.json").unlink()  # so that resume trains on

        for argv in verbs:
            yield Case(f"{entry} is a link: {' '.join(argv[::3])}", argv, make=link)
    for name in ("x.onnx", "x.yaml", "x.pth", "x.png", "x.parquet"):
        for target in ("/dev/zero", "/dev/stdin", "fifo", "/proc/self/mem", "loop"):

            def special(folder: Path, name: str = name, target: str = target) -> None:
                os.mkfifo(folder / "fifo")
                (folder / "loop").symlink_to("loop")
                (folder / name).symlink_to(target)

            for argv in (
                ("predict", "x.onnx", "{image}"),
                ("predict", "{run}", "x.png"),
                ("train", "x.yaml", "--print-config"),
                (*TRAIN, "--transfer.weights", "x.pth"),
                ("data", "check", "x.parquet"),
                ("ablate", "x.yaml"),
                ("tune", "x.yaml"),
            ):
                if name in argv:
                    yield Case(f"{name} is {target}: {argv[0]}", argv, make=special)


def downloads(base: Base) -> Iterator[Case]:
    """Files of the names that torchvision expects in its folders, with another content."""
    call = next(data for _, data in _opcodes("os", "system", base.touch))
    cached = "cache/downloads"
    cifar = {
        f"{cached}/cifar10/cifar-10-batches-py/{name}": call
        for name in (
            "data_batch_1",
            "data_batch_2",
            "data_batch_3",
            "data_batch_4",
            "data_batch_5",
            "test_batch",
            "batches.meta",
        )
    }
    hundred = {f"{cached}/cifar100/cifar-100-python/{name}": call for name in ("train", "test", "meta")}
    idx = b"\0\0\x08\x03" + (2**31 - 1).to_bytes(4, "big") * 3
    for name, files in {"cifar10": cifar, "cifar100": hundred}.items():
        yield Case(f"{name}: pickles", ("train", "--data", name, "--data.cache", "cache", *SHORT), files)
    for name, group in (("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")):
        raw = {
            f"{cached}/{name}/{group}/raw/{part}": idx
            for part in (
                "train-images-idx3-ubyte",
                "train-labels-idx1-ubyte",
                "t10k-images-idx3-ubyte",
                "t10k-labels-idx1-ubyte",
            )
        }
        yield Case(f"{name}: sizes that lie", ("train", "--data", name, "--data.cache", "cache", *SHORT), raw)
        for how, wrap in (("zip", _zip), ("before 1.6", _legacy)):
            old = {f"{cached}/{name}/{group}/processed/{part}.pt": wrap(call) for part in ("training", "test")}
            yield Case(f"{name}: pickles, {how}", ("train", "--data", name, "--data.cache", "cache", *SHORT), old)
    matlab = {f"{cached}/svhn/{part}_32x32.mat": b"MATLAB 5.0 MAT-file" + b"\xff" * 500 for part in ("train", "test")}
    yield Case("svhn: MATLAB", ("train", "--data", "svhn", "--data.cache", "cache", *SHORT), matlab)
    for how, wrap in (("zip", _zip), ("before 1.6", _legacy), ("bare", lambda data: data)):
        kept = {"torch/hub/checkpoints/resnet18-f37072fd.pth": wrap(call)}
        argv = ("train", "--data", "digits", "--model", "torchvision/resnet18", "--transfer.weights", "default", *SHORT)
        yield Case(f"torchvision's resnet18: a pickle, {how}", argv, kept)


def caches(base: Base) -> Iterator[Case]:
    """The cache of decoded images, each of its files replaced by pickles and by sizes that lie."""
    call = next(data for _, data in _opcodes("os", "system", base.touch))
    import numpy as np

    from hostile.pickles import _npy, _npz

    lies = (
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117)
        + b"\n"
    )
    bombs = {
        "a pickle": _npy(call),
        "an archive of pickles": _npz(call),
        "10^12 values": lies,
        "empty": b"",
        "zeros": bytes(64),
        "a call in the header": np.lib.format.MAGIC_PREFIX
        + b"\x01\x00\x40\x00"
        + f"__import__('os').system({base.touch!r})".encode(),
    }
    cache = base.folder / "cache"
    for file in sorted(path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")):
        for what, content in bombs.items():

            def damage(folder: Path, file: Path = file, content: bytes = content) -> None:
                subprocess.run(["cp", "-r", cache, folder / "cache"], check=True)
                (folder / "cache" / file.relative_to(cache)).write_bytes(content)

            argv = (
                "train",
                "--data",
                "digits",
                "--data.cache",
                "cache",
                "--model",
                "simple-cnn",
                "--epochs",
                "1",
                "--track.wandb",
                "off",
            )
            yield Case(f"{file.name}: {what}", argv, make=damage)
    run = ("resume", "{run}")
    yield Case(
        "a run without checkpoints",
        run,
        make=lambda folder: (_unfinished(folder), subprocess.run(["rm", "-r", folder / "run/checkpoints"]))[0],
    )
