"""All that can only be seen on an accelerator, in one run of at most eight minutes: is it right, exact, and fast?

    python benchmarks/accelerator.py [--cifar FOLDER] [--weights tf_efficientnet_lite0.safetensors]
        [--airbench airbench94_muon.py] [--device cuda] [--minutes 8] [--out docs/results/accelerator.json]
    python benchmarks/accelerator.py --device cpu --quick     the same sections, small

| section | what it measures |
|---|---|
| correctness | one step on the device and on the CPU, from the same weights and the same batch, by precision |
| waiting | some steps while torch raises at each operation that waits for the device |
| resume | a run that was cut after its first epoch and resumed, beside one that was not: which bits differ |
| throughput | images/s and memory of training simple-cnn and resnet18, and of `finetune`, beside a plain loop |
| speedrun | seconds and accuracy of the preset `speedrun` beside airbench94_muon on the same card |

The plain loop has what a careful user writes: a DataLoader with workers and pinned memory over decoded images,
torchvision's transforms, channels_last, autocast and a fused optimiser. Its second epoch counts, as does convsmith's
last. Without CIFAR-10, small images are random. JSON is written after each section, so that a time limit loses nothing;
a section that fails or has no time says so in it.

For a machine without a network: `pip wheel . --wheel-dir WHEELS` elsewhere, and `pip install --no-index --find-links
WHEELS convsmith` there. `--pack CIFAR_PARQUET_FOLDER PIECES` divides the data into files of at most 60 MB, whose folder
is `--cifar` there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from numpy.typing import NDArray

import convsmith
from convsmith import records
from convsmith.config import RunConfig, presets, read_run_config, validate
from convsmith.contracts import Batch
from convsmith.data.config import DataConfig
from convsmith.data.dataset import open_dataset
from convsmith.data.sources import ARRAYS, from_arrays
from convsmith.errors import first_line
from convsmith.runtime import Interrupts
from convsmith.training import feed, loop, restore, setup
from convsmith.training.experiment import Experiment
from convsmith.training.own import Parts
from convsmith.training.step import step

PIECE = 60_000_000  # bytes of a packed file at most
#: The largest relative error of a step's update on the device. Precisions round to 24, 11 and 8 bits; convolutions in
#: float32 may be computed as TF32, of 11 bits.
TOLERANCES = {"float32": 0.02, "float16": 0.05, "bfloat16": 0.2}
SEEDS = 3


@dataclass(frozen=True)
class Given:
    """What the sections need: the device, and where data and files of others are."""

    device: torch.device
    quick: bool
    cifar: Path | None = None
    weights: Path | None = None
    airbench: Path | None = None
    workers: int = 8

    @property
    def precisions(self) -> list[str]:
        return ["float32", "bfloat16"] + (["float16"] if self.device.type == "cuda" else [])


class Skip(Exception):
    """Why a section, or a part of one, does not run."""


def small_images(given: Given) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """CIFAR-10's train images, or random ones of their size."""
    if given.cifar is None:
        return random_images(512 if given.quick else 50_000, 32)
    train = open_dataset(DataConfig(source=str(given.cifar))).train
    count = min(len(train), 512) if given.quick else len(train)
    return train.gather(np.arange(count)), train.labels[:count]


def random_images(count: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    draws = np.random.default_rng(0)
    return draws.integers(0, 256, (count, side, side, 3), dtype=np.uint8), np.arange(count) % 10


def config_of(given: Given, model: str, **train: Any) -> RunConfig:
    sections = {
        "data": {"source": ARRAYS, "val_fraction": 0.1, "test_fraction": 0},
        "model": {"name": model},
        "augment": {"hflip": True, "shift": 4},
        "transfer": {"weights": "none"},
        "train": {"epochs": 1, "batch_size": 32, "device": given.device.type, "layout": "contiguous", **train},
        "track": {"wandb": "off"},
    }
    return validate(sections)


@contextmanager
def started(config: RunConfig, parts: Parts) -> Iterator[Experiment]:
    with tempfile.TemporaryDirectory() as folder:
        yield setup.start(setup.prepare(config, parts), Path(folder), parts=parts)


def update_of(given: Given, model: str, precision: str) -> tuple[dict[str, torch.Tensor], float]:
    """The change of all weights by one step on the same batch, on the CPU, and the loss."""
    parts = Parts(from_arrays(*random_images(40, 32)))
    host = replace(given, device=torch.device("cpu"))
    optim = {"optim": {"name": "sgd", "lr": 0.1}}
    with started(config_of(host, model).with_values(**optim), parts) as on_host:
        batch = next(iter(feed.train_batches(on_host)(0, 0)))
    with started(config_of(given, model, precision=precision).with_values(**optim), parts) as experiment:
        weights = dict(experiment.state.model.named_parameters())
        before = {name: value.detach().clone() for name, value in weights.items()}
        images, labels = batch.images.to(given.device), batch.labels.to(given.device)
        experiment.state.training_mode()
        step(experiment.state, Batch(images, labels), experiment.recipe)
        loss = experiment.state.metrics.read()[0]
        return {name: (value.detach() - before[name]).cpu() for name, value in weights.items()}, loss


def correctness(given: Given) -> dict[str, Any]:
    found = {}
    host = replace(given, device=torch.device("cpu"))
    for model in ("simple-cnn",) if given.quick else ("simple-cnn", "resnet18"):
        expected, expected_loss = update_of(host, model, "float32")
        norm = torch.cat([value.flatten() for value in expected.values()]).norm()
        for precision in given.precisions:
            update, loss = update_of(given, model, precision)
            error = torch.cat([(update[name] - value).flatten() for name, value in expected.items()]).norm() / norm
            found[f"{model} {precision}"] = {
                "relative_error_of_the_update": float(error),
                "loss": loss,
                "loss_on_the_cpu": expected_loss,
                "passes": bool(error <= TOLERANCES[precision]),
            }
    return found


def waiting(given: Given) -> dict[str, Any]:
    if given.device.type != "cuda":
        raise Skip("torch can raise at what waits on CUDA alone; tests/training/test_step.py holds the same on `meta`")
    parts = Parts(from_arrays(*random_images(400, 32)))
    everything = {"cutout": 8, "rotation": 10, "brightness": 0.2, "contrast": 0.2, "cutmix": 1.0, "rand_ops": 2}
    config = config_of(given, "simple-cnn", ema=0.99).with_values(augment=everything, regularize={"clip_norm": 1.0})
    with started(config, parts) as experiment:
        experiment.state.training_mode()
        batches = feed.train_batches(experiment)
        for batch in batches(0, 0):  # what is built once may wait
            step(experiment.state, batch, experiment.recipe)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in batches(1, 0):
                step(experiment.state, batch, experiment.recipe)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return {"steps": experiment.state.step, "passes": True}


def resume(given: Given) -> dict[str, Any]:
    parts = Parts(from_arrays(*random_images(200 if given.quick else 2_000, 32)))
    found: dict[str, Any] = {}
    for deterministic in (True,) if given.device.type == "cpu" else (True, False):
        config = config_of(given, "simple-cnn", epochs=2, deterministic=deterministic)
        with started(config, parts) as whole:
            list(loop.epochs(whole, Interrupts()))
            expected = whole.state.tensors()
        with started(config, parts) as cut:  # not before: torch's own generator belongs to the process
            with closing(loop.epochs(cut, Interrupts())) as events:
                while not cut.state.epoch:
                    next(events)
            torch.manual_seed(1)  # as a new process would be at some other place
            resumed = restore.resume(cut.run, parts)
            list(loop.epochs(resumed, Interrupts()))
            found_again = resumed.state.tensors()
        differ = [name for name, value in expected.items() if not torch.equal(value, found_again[name])]
        exact = {"tensors": len(expected), "differ": len(differ), "passes": not differ or not deterministic}
        found["deterministic" if deterministic else "fastest"] = exact
    return found


class Decoded(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Decoded images with torchvision's transforms, for the plain loop."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        from torchvision.transforms import v2

        self.images, self.labels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels
        side = images.shape[1]
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomCrop(side, padding=4),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def plain(
    given: Given, network: torch.nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], batch: int
) -> dict[str, Any]:
    """The second epoch of a plain loop with autocast to bfloat16."""
    device, on_cuda = given.device, given.device.type == "cuda"
    loader = torch.utils.data.DataLoader(
        Decoded(images, labels),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=given.workers,
        pin_memory=on_cuda,
        persistent_workers=given.workers > 0,
    )
    network = network.to(device=device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=device.type != "mps")
    for _ in range(2):
        seen, began = 0, time.perf_counter()
        for pixels, targets in loader:
            inputs = pixels.to(device=device, memory_format=torch.channels_last, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16):
                logits = network(inputs)
            loss = torch.nn.functional.cross_entropy(logits.float(), targets.to(device, non_blocking=True))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            seen += len(targets)
        loss.item()
        seconds = time.perf_counter() - began
    return {"images_per_second": seen / seconds}


def ours(given: Given, model: Any, data: Any, batch: int, **train: Any) -> dict[str, Any]:
    """The last epoch of a training, without its validation."""
    settings = {"device": given.device.type, "batch_size": batch, "epochs": 2 if given.quick else 4, **train}
    with tempfile.TemporaryDirectory() as folder:
        run = convsmith.train(
            data,
            model,
            preset=None,
            runs_dir=folder,
            show=False,
            augment={"hflip": True, "shift": 4},
            transfer={"weights": "none"},
            optim={"name": "adam"},
            train=settings,
            track={"wandb": "off"},
        )
        chosen = read_run_config(run.files.config).train.model_dump(
            include={"layout", "precision", "compile", "deterministic"}
        )
        return {"images_per_second": run.metrics[-1]["images_per_second"], **chosen}


@contextmanager
def memory_of(given: Given, into: dict[str, Any]) -> Iterator[None]:
    if given.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(given.device)
    yield
    if given.device.type == "cuda":
        into["peak_megabytes"] = torch.cuda.max_memory_allocated(given.device) / 1e6


VARIANTS: dict[str, dict[str, Any]] = {
    "exact": {"precision": "float32"},
    "exact bfloat16": {"precision": "bfloat16"},
    "fastest": {"precision": "bfloat16", "deterministic": False},
    "fastest compiled": {"precision": "bfloat16", "deterministic": False, "compile": "reduce-overhead"},
}


def throughput(given: Given, model: str, build: Callable[[int], torch.nn.Module], data: Any, batch: int) -> Any:
    images, labels = data
    found: dict[str, Any] = {"plain": {}}
    with memory_of(given, memory := {}):
        found["plain"] |= plain(given, build(images.shape[1]), images, labels, batch)
    found["plain"] |= memory
    for name, train in VARIANTS.items():
        if given.quick and name != "exact":
            continue
        try:
            with memory_of(given, memory := {}):
                found[name] = ours(given, model, data, batch, **train)
            found[name] |= memory
            found[name]["times_plain"] = found[name]["images_per_second"] / found["plain"]["images_per_second"]
        except Exception as error:
            found[name] = {"failed": first_line(error)}
    return found


def simple_cnn(given: Given) -> Any:
    from convsmith.nets.build import build
    from convsmith.nets.config import ModelConfig

    return throughput(
        given, "simple-cnn", lambda side: build(ModelConfig(name="simple-cnn"), 3, side, 10), small_images(given), 128
    )


def resnet18(given: Given) -> Any:
    from torchvision.models import resnet18 as build

    data = random_images(*((100, 32) if given.quick else (3_000, 224)))
    return throughput(given, "torchvision/resnet18", lambda side: build(num_classes=10), data, 8 if given.quick else 64)


def finetune(given: Given) -> Any:
    """The whole preset on random photographs, beside as many epochs of a plain loop that trains all of the network."""
    import timm

    if given.weights is None:
        raise Skip("no --weights: pretrained weights of timm/tf_efficientnet_lite0")
    images, labels = random_images(*((100, 32) if given.quick else (2_000, 224)))
    quick = {"transfer": {"unfreeze": {"after": 1, "most": 1}}, "train": {"epochs": 2}} if given.quick else {}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run = convsmith.train(
            (images, labels),
            preset="finetune",
            runs_dir=folder,
            show=False,
            transfer={"weights": str(given.weights)} | quick.get("transfer", {}),
            train={"device": given.device.type, "deterministic": False} | quick.get("train", {}),
            track={"wandb": "off"},
        )
        seconds, train = time.perf_counter() - began, read_run_config(run.files.config).train
        epochs, trained = run.summary["epochs"], records.read(run.files.splits, records.Splits)["splits"]["train"]
    network = timm.create_model("tf_efficientnet_lite0", num_classes=10)
    rate = plain(given, network, images, labels, train.batch)["images_per_second"]
    return {
        "epochs": epochs,
        "seconds": seconds,
        "seconds_of_plain_epochs": epochs * len(trained) / rate,
        "times_plain": epochs * len(trained) / rate / seconds,
    }


def speedrun(given: Given) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "speedrun" not in presets():
        raise Skip("there is no preset speedrun")
    if given.cifar is None:
        raise Skip("no --cifar")
    if given.device.type == "cpu" and not given.quick:
        raise Skip("benchmarks/speedrun.py compares both on the CPU")
    times, accuracies = [], []
    for seed in range(1 if given.quick else SEEDS):
        with tempfile.TemporaryDirectory() as folder:
            run = convsmith.train(
                {"source": str(given.cifar)} | ({"limit": 200} if given.quick else {}),
                preset="speedrun",
                runs_dir=folder,
                show=False,
                train={"device": given.device.type, "seed": seed} | ({"epochs": 2} if given.quick else {}),
                track={"wandb": "off"},
            )
            times.append(run.summary["seconds"])
            last = run.metrics[-1]["train_accuracy"]  # the preset keeps no val images
            accuracies.append(last if given.quick else run.evaluate(split="test", show=False)["accuracy"])
    found["convsmith"] = {"seconds": times, "accuracies": accuracies}
    if given.airbench is None or given.quick:
        return found | {"airbench94_muon": "no --airbench, or --quick"}
    command = [sys.executable, __file__, "--airbench-alone", str(given.airbench), "--cifar", str(given.cifar)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found["airbench94_muon"] = theirs = json.loads(done.stdout.splitlines()[-1])
    found["times_airbench"] = statistics.median(theirs["seconds"]) / statistics.median(times)
    return found


def airbench_alone(path: Path, cifar: Path) -> dict[str, Any]:
    """The published file as it is, on the same images: seconds of training by its own clock, after its own warm-up."""
    import os

    from convsmith.data.dataset import unseal_test

    source = path.read_text(encoding="utf-8").partition('if __name__ == "__main__":')[0]
    seconds, accuracies = [], []
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(DataConfig(source=str(cifar), val_fraction=0))
        (Path(folder) / "cifar10").mkdir()
        for name, part in (("train", dataset.train), ("test", unseal_test(dataset))):
            content = {
                "images": torch.from_numpy(part.gather(np.arange(len(part)))),
                "labels": torch.from_numpy(part.labels),
                "classes": list(dataset.classes),
            }
            torch.save(content, Path(folder) / "cifar10" / f"{name}.pt")
        os.chdir(folder)
        sys.argv = [str(path)]
        names: dict[str, Any] = {"__name__": "airbench"}
        exec(compile(source, str(path), "exec"), names)
        taken: list[float] = []
        names["print_training_details"] = lambda variables, is_final_entry: taken.append(variables["time_seconds"])
        model = names["CifarNet"]().cuda().to(memory_format=torch.channels_last)
        model.compile(mode="max-autotune")
        names["main"]("warmup", model)
        for number in range(SEEDS):
            accuracies.append(float(names["main"](number, model)))
            seconds.append(taken[-1])
    return {"seconds": seconds, "accuracies": accuracies}


#: section -> its function, and the seconds that it may take on an accelerator
SECTIONS: dict[str, tuple[Callable[[Given], Any], float]] = {
    "correctness": (correctness, 30),
    "waiting": (waiting, 15),
    "resume": (resume, 40),
    "throughput simple-cnn": (simple_cnn, 110),
    "throughput resnet18": (resnet18, 110),
    "throughput finetune": (finetune, 60),
    "speedrun": (speedrun, 110),
}


def measure(given: Given, out: Path | None, minutes: float, only: list[str]) -> dict[str, Any]:
    """Run the sections, and write what is known after each of them."""
    began = time.monotonic()
    result: dict[str, Any] = {"device": given.device.type, "quick": given.quick, "machine": machine(), "sections": {}}
    for name, (section, needs) in SECTIONS.items():
        if only and name not in only:
            continue
        start = time.monotonic()
        if start - began + needs > 60 * minutes and not given.quick:
            found: Any = {"skipped": f"it may take {needs:.0f} s, and {60 * minutes - start + began:.0f} s are left"}
        else:
            try:
                found = section(given)
            except Skip as reason:
                found = {"skipped": str(reason)}
            except Exception as error:
                found = {"failed": f"{type(error).__name__}: {first_line(error)}"}
        result["sections"][name] = {"seconds": round(time.monotonic() - start, 1), **found}
        print(name, json.dumps(result["sections"][name]), flush=True)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def pack(source: Path, pieces: Path) -> None:
    """Divide the Parquet files of a folder into files of at most `PIECE` bytes, named as the Hugging Face hub does."""
    import pyarrow.parquet as pq

    pieces.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*.parquet")):
        table, split = pq.read_table(path), "test" if "test" in path.stem else "train"
        count = -(-path.stat().st_size // PIECE)
        size = -(-len(table) // count)
        for number in range(count):
            piece = pieces / f"{split}-{number:05d}-of-{count:05d}.parquet"
            pq.write_table(table.slice(number * size, size), piece, compression="none")
            assert piece.stat().st_size <= 1.1 * PIECE, f"{piece} is too large"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="a folder with CIFAR-10 as Parquet")
    parser.add_argument("--weights", type=Path, help="pretrained weights of timm/tf_efficientnet_lite0")
    parser.add_argument("--airbench", type=Path, help="airbench94_muon.py, as published")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small data and few epochs, to try the script itself")
    parser.add_argument("--minutes", type=float, default=8, help="sections that may not end in time are skipped")
    parser.add_argument("--only", nargs="*", default=[], choices=SECTIONS)
    parser.add_argument("--workers", type=int, default=8, help="of the plain loop")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pack", nargs=2, type=Path, metavar=("CIFAR", "PIECES"))
    parser.add_argument("--airbench-alone", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pack:
        pack(*args.pack)
    elif args.airbench_alone:
        print(json.dumps(airbench_alone(args.airbench_alone.resolve(), args.cifar.resolve())))
    else:
        given = Given(torch.device(args.device), args.quick, args.cifar, args.weights, args.airbench, args.workers)
        measure(given, args.out, args.minutes, args.only)


if __name__ == "__main__":
    main()
