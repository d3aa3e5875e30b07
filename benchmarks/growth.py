"""How time and memory grow with images, model and classes, and what images beyond the memory cost.

    python benchmarks/growth.py [PIECE ...] [--again]     all pieces, or some: images-1 ... tenth
    python benchmarks/growth.py table                     docs/growth.md from docs/results/growth.json

A piece takes seconds, and is written to docs/results/growth.json as soon as it is done; what is there is not measured
again without --again. Each stage of a piece (decoding into the cache, opening what is decoded, an epoch of training,
evaluation, report) runs in a process of its own, forked from one that has imported everything, so that neither time nor
memory counts the imports. Images are drawn at random, and are JPEG files.

`memory` trains on images four times as large as the memory of a control group, which takes root; `cores` decodes on
one core and on all; `tenth` decodes and trains on 128,000 images of 1,000 classes, a tenth of ImageNet.
All pieces take some 8 minutes on 2 cores, and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from PIL import Image

import convsmith
import convsmith.prediction.evaluate
import convsmith.report.run
import convsmith.run
from convsmith.config import compose
from convsmith.data.config import ARRAYS, DataConfig
from convsmith.data.dataset import open_dataset
from convsmith.data.source import Source
from convsmith.events import EpochEnd, TrainingStarted
from convsmith.training.feed import train_batches
from convsmith.training.own import Parts
from convsmith.training.setup import prepare, start
from convsmith.training.step import step

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULT, TABLE = DOCS / "results" / "growth.json", DOCS / "growth.md"
IMAGES, SIDE, CLASSES = 4_000, 32, 20  # of the smallest piece of `images`
AXES = {"images": (1, 2, 4, 8), "model": (1, 2, 4, 8), "classes": (2, 16, 125, 1000)}
STAGES = ("decoding", "opening", "training", "evaluation", "report")
LIMIT, BEYOND = 640 * 2**20, 4  # bytes of the control group, and how much larger the images are
WARM, MEASURED = 60, 50  # batches: in the first ones all blocks of the cache are compared with their checksums
TENTH = 128_000
Found = dict[str, Any]


def megabytes(name: str) -> float:
    """VmHWM (the peak) or VmRSS of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))


def processor_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def apart(work: Callable[[], Found | None], limit: int | None = None) -> Found:
    """What `work` finds in a forked process, with its seconds, and its peak of memory beyond that of the imports."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            if limit:
                Path(os.environ["GROUP"], "cgroup.procs").write_text(str(os.getpid()))
            before, began, busy = megabytes("VmRSS"), time.perf_counter(), processor_seconds()
            found = work() or {}
            seconds = {"seconds": time.perf_counter() - began, "processor_seconds": processor_seconds() - busy}
            peak = {"megabytes": megabytes("VmHWM") - before}
            os.write(writing, json.dumps(seconds | peak | found).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer = answers.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a stage ended with status {status}"
    return dict(json.loads(answer))


def write_images(folder: Path, count: int, side: int, classes: int) -> None:
    """JPEG files in class folders, each a smooth image of random colours."""
    rng = np.random.default_rng(0)
    for number in range(classes):
        (folder / f"class{number:04d}").mkdir(parents=True)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        path = folder / f"class{number % classes:04d}" / f"{number:07d}.jpg"
        small.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)


def stages(images: int, classes: int, side: int = SIDE, **model: Any) -> Found:
    """Time and memory of each stage, in this order, on as many images."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["CONVSMITH_CACHE"] = f"{place}/cache"
        write_images(Path(place, "images"), images, side, classes)
        config = DataConfig(source=f"{place}/images")

        def opened() -> None:
            open_dataset(config)

        def trained() -> Found:
            times: dict[type, tuple[float, float]] = {}

            def listen(event: object) -> None:
                times.setdefault(type(event), (time.perf_counter(), processor_seconds()))

            convsmith.train(
                f"{place}/images",
                model or "simple-cnn",
                epochs=1,
                preset="baseline",
                name="run",
                runs_dir=place,
                show=listen,
                train={"layout": "contiguous"},
                track={"wandb": "off"},
            )
            (began, busy), (ended, done) = times[TrainingStarted], times[EpochEnd]
            parameters = json.loads(Path(place, "run", "summary.json").read_text())["parameters"]
            return {"seconds": ended - began, "processor_seconds": done - busy, "parameters": parameters}

        def evaluated() -> None:
            convsmith.load(f"{place}/run").evaluate(show=False)

        def reported() -> Found:
            page = convsmith.load(f"{place}/run").report(show=False)
            return {"page_megabytes": page.stat().st_size / 1e6}

        def alone(run: Callable[[], Found | None]) -> Found | None:
            torch.set_num_threads(1)  # whose processor time counts no waiting for each other
            return run()

        work = dict(zip(STAGES, (opened, opened, trained, evaluated, reported), strict=True))
        found = {name: apart(partial(alone, run)) for name, run in work.items()}
        return {"images": images, "classes": classes, "parameters": found["training"]["parameters"], "stages": found}


def drawn(count: int, side: int, classes: int) -> Source:
    """Images that are drawn when they are read, as arrays: nothing is to be decoded."""
    noise = np.random.default_rng(0).integers(0, 256, 2**20 + 3 * side * side, dtype=np.uint8)

    def read(row: int) -> np.ndarray:
        at = row * 7919 % 2**20
        return noise[at : at + 3 * side * side].reshape(side, side, 3)

    return Source(
        name="drawn",
        classes=tuple(f"class{number:04d}" for number in range(classes)),
        ids=tuple(f"{row:08d}" for row in range(count)),
        labels=np.arange(count) % classes,
        given=np.full(count, ""),
        fingerprint=f"drawn {count} {side} {classes}",
        read=read,
        native_size=(side, side),
        native_channels=3,
    )


@contextmanager
def control_group(limit: int) -> Iterator[None]:
    """A control group whose processes have `limit` bytes, for files as well (version 1 or 2)."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    first = next((path for _, names, path in lines if "memory" in names.split(",")), None)
    if first is not None:
        group, name = Path(f"/sys/fs/cgroup/memory{first}", f"growth-{os.getpid()}"), "memory.limit_in_bytes"
    else:
        group, name = Path(f"/sys/fs/cgroup{lines[0][2]}", f"growth-{os.getpid()}"), "memory.max"
    group.mkdir()
    try:
        (group / name).write_text(str(limit))
        os.environ["GROUP"] = str(group)
        yield
    finally:
        group.rmdir()


def speed(source: Source | str) -> Found:
    """Images a second of training simple-cnn as the loop does it, and the pages that were waited for, of `MEASURED`."""
    own = isinstance(source, Source)
    flags = {"train.layout": "channels_last", "data.source": ARRAYS if own else str(source)}
    parts = Parts(source=source) if isinstance(source, Source) else Parts()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as runs:
        experiment = start(prepare(compose("baseline", None, flags), parts), Path(runs), parts=parts)
        times = [time.perf_counter()]
        for number, batch in enumerate(islice(train_batches(experiment)(0, 0), WARM + MEASURED)):
            if number == WARM:
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
            step(experiment.state, batch, experiment.recipe)
            times.append(time.perf_counter())
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
    size = experiment.config.train.batch
    return {
        "start_seconds": times[0] - began,
        "images_per_second": size * MEASURED / (times[-1] - times[WARM]),
        "images_per_second_at_first": size * WARM / (times[WARM] - times[0]),
        "page_faults_an_image": faults / size / MEASURED,
    }


def drop_from_memory(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory_piece() -> Found:
    """The speed with images of BEYOND times the memory of a control group, and with all of them in memory."""
    side = 64
    source = drawn(BEYOND * LIMIT // (3 * side * side), side, CLASSES)
    rates: dict[str, list[Found]] = {"in_memory": [], "limited": []}
    with tempfile.TemporaryDirectory() as cache, control_group(LIMIT):
        os.environ["CONVSMITH_CACHE"] = cache
        built = apart(lambda: open_dataset(DataConfig(source=ARRAYS), source=source) and None)
        pixels = next(Path(cache).glob("images/*/pixels"))
        for _ in range(2):
            rates["in_memory"].append(apart(lambda: speed(source)))
            drop_from_memory(pixels)
            rates["limited"].append(apart(lambda: speed(source), LIMIT))
    medians = {name: statistics.median(one["images_per_second"] for one in of) for name, of in rates.items()}
    return {
        "images": len(source),
        "cache_megabytes": 3 * side * side * len(source) / 1e6,
        "limit_megabytes": LIMIT / 1e6,
        "building": built,
        "rounds": rates,
        "images_per_second": medians,
        "ratio": medians["limited"] / medians["in_memory"],
    }


def cores_piece() -> Found:
    """Decoding on one core and on all, in turns: small images, and such as photographs are."""
    found: Found = {}
    everywhere = os.sched_getaffinity(0)
    for name, count, side, working in (("64 pixels", 20_000, 64, 64), ("400 pixels", 2_400, 400, 224)):
        rates: dict[str, list[float]] = {"one_core": [], "all_cores": []}
        with tempfile.TemporaryDirectory() as place:
            write_images(Path(place, "images"), count, side, CLASSES)
            config = DataConfig(source=f"{place}/images", image_size=working, channels=3)
            for number in range(3):
                for cores, of in zip(({min(everywhere)}, everywhere), rates.values(), strict=True):
                    os.environ["CONVSMITH_CACHE"] = f"{place}/{number}-{len(cores)}"

                    def decoded(cores: set[int] = cores, config: DataConfig = config) -> None:
                        os.sched_setaffinity(0, cores)
                        open_dataset(config)

                    of.append(count / apart(decoded)["seconds"])
        ratio = statistics.median(b / a for a, b in zip(*rates.values(), strict=True))
        found[name] = {"images": count, "images_per_second": rates, "ratio": ratio}
    return found | {"cores": len(everywhere)}


def tenth_piece() -> Found:
    """A tenth of ImageNet's number of images, of 64 pixels: decoding, opening, and the speed of an epoch."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["CONVSMITH_CACHE"] = f"{place}/cache"
        write_images(Path(place, "images"), TENTH, 64, 1000)
        config = DataConfig(source=f"{place}/images")
        found = {
            "decoding": apart(lambda: open_dataset(config) and None),
            "opening": apart(lambda: open_dataset(config) and None),
            "training": apart(lambda: speed(f"{place}/images")),
        }
        size = next(Path(place).glob("cache/images/*/pixels")).stat().st_size
    return {"images": TENTH, "cache_megabytes": size / 1e6, "stages": found}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of a line through the logarithms (least squares)."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def table(result: Found) -> str:
    """docs/growth.md: what the pieces found, and the exponents."""
    done, here = result["pieces"], result["machine"]
    flags, cores = ", ".join(here["flags"]), here["cores"]
    lines = [
        "# How costs grow",
        "",
        "Generated by `python benchmarks/growth.py table` from [results/growth.json](results/growth.json).\n"
        f"Measured on {cores} cores ({here['processor']}; {flags}), with other work on the machine, "
        f"whose load was {here['load']} at the last piece.",
    ]
    for axis, factors in AXES.items():
        pieces = [done[f"{axis}-{factor}"] for factor in factors]
        sizes = [piece[{"images": "images", "model": "parameters", "classes": "classes"}[axis]] for piece in pieces]
        lines += [
            "",
            f"## {axis.capitalize()}",
            "",
            "Seconds of the processor, and MB beyond the imports at the peak, images mapped from the cache included.",
            "",
        ]
        unit = {"images": "images", "model": "parameters", "classes": "classes"}[axis]
        heads = ["stage", *(f"{size:,} {unit}" for size in sizes), "exponent of time", "of memory"]
        lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for stage in STAGES:
            costs = [piece["stages"][stage] for piece in pieces]
            seconds, peaks = ([cost[key] for cost in costs] for key in ("processor_seconds", "megabytes"))
            cells = [f"{second:.2f} s, {peak:,.0f} MB" for second, peak in zip(seconds, peaks, strict=True)]
            slopes = [f"{exponent(sizes, values):.2f}" for values in (seconds, peaks)]
            lines.append(f"| {' | '.join([stage, *cells, *slopes])} |")
    lines += ["", "## Images of four times the memory", ""]
    memory = done["memory"]
    rates = memory["images_per_second"]
    lines.append(
        f"{memory['images']:,} images of 64 pixels ({memory['cache_megabytes']:,.0f} MB) in a control group of "
        f"{memory['limit_megabytes']:,.0f} MB, page cache included: {rates['limited']:,.0f} images/s of "
        f"training against {rates['in_memory']:,.0f} with all of them in memory, {memory['ratio']:.2f} of the speed."
    )
    lines += [
        "",
        "## Decoding on all cores",
        "",
        "| JPEG files of | one core | all cores | ratio |",
        "|---|---|---|---|",
    ]
    for name, of in done["cores"].items():
        if name != "cores":
            one, every = (statistics.median(rates) for rates in of["images_per_second"].values())
            lines.append(
                f"| {of['images']:,} of {name} | {one:,.0f} images/s | {every:,.0f} images/s | {of['ratio']:.2f} |"
            )
    lines += ["", "## A tenth of ImageNet", ""]
    tenth, largest, eighth = done["tenth"], done["images-8"], done["cores"]["64 pixels"]["images_per_second"]
    opening = largest["stages"]["opening"]
    count = tenth["images"]
    expected = {
        "cache": f"{count * 3 * 64 * 64 / 1e6:,.0f} MB",
        "decoding": f"{count / statistics.median(eighth['all_cores']):,.0f} s",
        "opening": f"{count / largest['images'] * opening['seconds']:.1f} s",
        "training": f"{rates['in_memory']:,.0f} images/s",
    }
    measured = {
        "cache": f"{tenth['cache_megabytes']:,.0f} MB",
        "decoding": f"{tenth['stages']['decoding']['seconds']:,.0f} s",
        "opening": f"{tenth['stages']['opening']['seconds']:.1f} s",
        "training": f"{tenth['stages']['training']['images_per_second']:,.0f} images/s",
    }
    lines += [f"{count:,} images of 64 pixels, of 1,000 classes. Expected from the pieces above, and measured:", ""]
    lines += ["| | expected | measured |", "|---|---|---|"]
    lines += [f"| {name} | {expected[name]} | {measured[name]} |" for name in expected]
    return "\n".join(lines) + "\n"


PIECES: dict[str, Callable[[], Found]] = {
    **{f"images-{factor}": partial(stages, factor * IMAGES, CLASSES) for factor in AXES["images"]},
    **{
        f"model-{factor}": partial(stages, IMAGES, CLASSES, name="small-resnet", width=8, depth=factor)
        for factor in AXES["model"]
    },
    **{f"classes-{count}": partial(stages, 4 * IMAGES, count, side=16) for count in AXES["classes"]},
    "memory": memory_piece,
    "cores": cores_piece,
    "tenth": tenth_piece,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", choices=[*PIECES, "table"], default=[])
    parser.add_argument("--again", action="store_true", help="measure pieces again that are there")
    args = parser.parse_args()
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"machine": machine(), "pieces": {}}
    if args.pieces == ["table"]:
        TABLE.write_text(table(result), encoding="utf-8")
        return
    for name in args.pieces or PIECES:
        if name in result["pieces"] and not args.again:
            continue
        began = time.perf_counter()
        result["pieces"][name] = PIECES[name]()
        result["machine"] = machine()
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
