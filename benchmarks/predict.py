"""`convsmith predict` and `evaluate` beside a plain PyTorch loop with two workers: whole processes, in turns.

    python benchmarks/predict.py FOLDER WEIGHTS.safetensors [--model tf_efficientnet_lite0] [--images 736] [--runs 5]
        [--only predict|evaluate]

FOLDER holds photographs in class folders; a linear probe of the weights is trained on them, and then both contestants
classify copies of them, as many as asked for, and write a CSV file. `evaluate` has the copies in class folders, and an
empty cache each time, into which it decodes them first; the loop counts what is right as well.

The loop is what one would write: timm's network with the same weights, a DataLoader with two workers, batches of 64,
torchvision's transforms with the same sizes and filter, inference mode, softmax. Time is from the start of a process to
its end; memory is that of the largest process. torchvision resizes to whole pixels and then crops, which changes
probabilities by a hundredth; so they are compared with those of the loop that crops and resizes in one step. Writes
docs/results/predict.json, of which --only leaves the other verb's part as it is.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "predict.json"
BATCH, WORKERS = 64, 2


def loop(model: str, run: Path, photos: Path, out: Path, crops_alike: bool) -> None:
    """The plain loop, which imports nothing of convsmith; with `crops_alike` it crops and resizes in one step, too.

    Of photographs in class folders it prints the accuracy.
    """
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    card = json.loads((run / "model/model.json").read_text())
    rules, classes = card["preprocessing"], card["classes"]
    size = rules["image_size"]
    resize = transforms.Resize(round(size / rules["crop"]), transforms.InterpolationMode.BICUBIC)

    def cropped(image: Image.Image) -> Image.Image:
        inner = round(rules["crop"] * min(image.size))
        left, top = ((side - inner) // 2 for side in image.size)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + inner, top + inner))

    sized = [cropped] if crops_alike else [resize, transforms.CenterCrop(size)]
    transform = transforms.Compose([*sized, transforms.ToTensor(), transforms.Normalize(rules["mean"], rules["std"])])

    class Photos(Dataset):
        def __init__(self) -> None:
            self.files = sorted(path for path in photos.rglob("*") if path.is_file())

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(self.files[index]).convert("RGB"))

    net = timm.create_model(model, num_classes=len(classes))
    ours = load_file(run / "model/model.safetensors")  # whose names are timm's below net., but for the head
    net.load_state_dict({re.sub("^net[.]", "", re.sub("^head[.]", "classifier.", key)): ours[key] for key in ours})
    net.eval()
    dataset = Photos()
    found = []
    with torch.inference_mode():
        for images in DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS):
            found.append(net(images).softmax(dim=1))
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *(f"p_{name}" for name in classes)])
        for path, row in zip(dataset.files, torch.cat(found).tolist(), strict=True):
            writer.writerow([path, *row])
    right = [
        classes[row.argmax()] == path.parent.name for path, row in zip(dataset.files, torch.cat(found), strict=True)
    ]
    print(json.dumps({"accuracy": sum(right) / len(right)}))


def measured(command: list[str], cache: Path | None = None) -> dict[str, float]:
    """Seconds from start to end, seconds of the processors, and the peak memory of the largest process in MB."""
    began, environ = time.perf_counter(), os.environ | ({"CONVSMITH_CACHE": str(cache)} if cache else {})
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environ)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command} ended with {status}"
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1000,
    }


def probabilities(path: Path) -> dict[str, list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {
            Path(row["id"]).name: [float(value) for key, value in row.items() if key.startswith("p_")]
            for row in csv.DictReader(file)
        }


def ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """How many times as fast we are: the median over runs in turns."""
    return statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))


def agreeing(
    ours: dict[str, list[float]], as_written: dict[str, list[float]], alike: dict[str, list[float]]
) -> dict[str, Any]:
    """How far our probabilities are from the loop's; `alike` are of the loop that crops and resizes in one step."""
    same_class = [ours[name].index(max(ours[name])) == found.index(max(found)) for name, found in as_written.items()]
    return {
        "largest_difference_of_a_probability": max(
            abs(a - b) for name in alike for a, b in zip(ours[name], alike[name], strict=True)
        ),
        "same_class_as_the_loop_as_written": f"{sum(same_class)} of {len(same_class)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--images", type=int, default=736)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=["predict", "evaluate"])
    parser.add_argument("--loop", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--alike", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        loop(args.model, *args.loop, args.alike)
        return
    from machine import machine  # which the loop's process, whose imports are timed, does without

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        photos, runs = here / "photos", here / "runs"
        photos.mkdir()
        files = sorted(file for file in args.folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for number in range(args.images):
            shutil.copy(files[number % len(files)], photos / f"{number:06d}{files[number % len(files)].suffix}")
        convsmith = [sys.executable, "-m", "convsmith.cli"]
        training = f"train --preset linear-probe --model timm/{args.model} --name probe --track.wandb off".split()
        paths = ["--data", args.folder, "--transfer.weights", args.weights, "--runs-dir", runs]
        subprocess.run([*convsmith, *training, *paths], check=True, stdout=subprocess.DEVNULL)
        labelled = here / "labelled"
        for photo, number in zip(sorted(photos.iterdir()), range(args.images), strict=True):
            home = labelled / files[number % len(files)].parent.name
            home.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, home)
        probe = str(runs / "probe")
        plain = [sys.executable, __file__, str(args.folder), str(args.weights), "--model", args.model, "--loop", probe]
        contestants = {
            "predict": {
                "convsmith": [*convsmith, "predict", probe, str(photos), "--out", str(here / "ours.csv")],
                "plain loop": [*plain, str(photos), str(here / "loop.csv")],
            },
            "evaluate": {
                "convsmith": [*convsmith, "evaluate", probe, "--data", str(labelled)],
                "plain loop": [*plain, str(labelled), str(here / "evaluated.csv")],
            },
        }
        verbs = [args.only] if args.only else list(contestants)
        results: dict[str, dict[str, list[dict[str, float]]]] = {
            verb: {name: [] for name in contestants[verb]} for verb in verbs
        }
        for number in range(args.runs + 1):
            for verb, runs_of in results.items():
                for name, command in contestants[verb].items():
                    cache = here / f"cache-{number}" if (verb, name) == ("evaluate", "convsmith") else None
                    found = measured(command, cache)
                    if number:  # the first of each fills the caches of the system
                        runs_of[name].append(found)
                        print(verb, name, found, flush=True)
        agreement = {}
        if "predict" in verbs:
            as_written = probabilities(here / "loop.csv")
            measured([*contestants["predict"]["plain loop"], "--alike"])
            agreement = agreeing(probabilities(here / "ours.csv"), as_written, probabilities(here / "loop.csv"))
    record: dict[str, Any] = json.loads(OUT.read_text()) if args.only else {}
    for verb, runs_of in results.items():
        record[verb] = {
            "machine": machine(),
            "images": args.images,
            "model": args.model,
            "medians": {
                name: {key: statistics.median(run[key] for run in found) for key in found[0]}
                for name, found in runs_of.items()
            },
            "times_as_fast": ratio(runs_of["convsmith"], runs_of["plain loop"]),
            **(agreement if verb == "predict" else {}),
            "runs": runs_of,
        }
    OUT.write_text(json.dumps(record, indent=2) + "\n")
    shown = {verb: {key: value for key, value in found.items() if key != "runs"} for verb, found in record.items()}
    print(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main()
