"""Give hostile files to every verb that might open them, under strace: what runs, what is written, how it ends.

    python benchmarks/hostile_files.py [KIND ...] [--every N] [--jobs J] [--minutes M] [--show]

The files of `benchmarks/hostile/` (pickles, torch.export archives, ONNX, safetensors, YAML, JSON, CSV, Parquet, working
folders, links, downloads, caches) try to touch a canary file. Counted for each kind are executions (any program but
those of EXPECTED, or a touched canary), writes outside the command's own folder, connections, tracebacks, errors of
more than one line, terminal escapes in the output, crashes, and commands that were still running after 60 s; with the
slowest command and the most memory beyond the 400 MB or so that a process with torch has. `armed` says how many of the
files do touch the canary when they are opened carelessly (pickle.load, yaml.UnsafeLoader, torch.export.load).
Needs Linux, strace, and the extra `export`. Ends with exit code 1 where anything ran, was written or broke.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from hostile import Base, Case

from convsmith import crash
from convsmith.cli import main
from convsmith.errors import UserError

RESULT = Path(__file__).resolve().parents[1] / "docs/results/hostile_files.json"
SECONDS, ADDRESSES = 60, 12 << 30  # a command's time, and its address space (to spare the machine)
CALLS = (
    "execve,execveat,open,openat,openat2,creat,unlink,unlinkat,rename,renameat,renameat2,symlink,symlinkat,link,linkat"
)
CALLS += ",mkdir,mkdirat,mknod,mknodat,truncate,chmod,fchmodat,socket,connect"
#: Programs that our own commands start (git for the revision, W&B's process and service, workers of studies), and those
#: by which Python and matplotlib look for libraries, fonts and the kind of processor.
EXPECTED = {
    "git",
    "wandb-core",
    "wandb-symon",
    "convsmith",
    "ldconfig",
    "fc-list",
    "uname",
    "python3",
    Path(sys.executable).name,
    Path(sys.executable).resolve().name,
}
SETS = {
    "cifar10",
    "cifar100",
    "mnist",
    "fashion-mnist",
    "svhn",
}  # downloaded where missing or damaged
BAD = ("executions", "writes", "connections", "tracebacks", "long_errors", "escapes", "crashes", "timeouts")


def kinds() -> dict[str, Callable[[Base], Iterator[Case]]]:
    from hostile import archives, documents, folders, onnx_files, pickles, tables, tensors

    return {
        "working folders": folders.working_folders,
        "pickles": pickles.pickles,
        "odd tensors": pickles.odd_tensors,
        "torch.export archives": archives.archives,
        "onnx": onnx_files.onnx_files,
        "safetensors": tensors.safetensors,
        "yaml": documents.yaml_files,
        "json": documents.json_files,
        "json fields": documents.json_fields,
        "csv": documents.csv_files,
        "parquet and archives": tables.tables,
        "links and devices": folders.links,
        "downloads": folders.downloads,
        "caches": folders.caches,
    }


def prepare(folder: Path) -> Base:
    """A small run with exports, and what hostile files must not touch."""
    from PIL import Image

    base = Base(folder, folder / "canary/touched")
    if base.archive.exists():
        return base
    for name in ("canary/victim/folder", "empty"):
        (folder / name).mkdir(parents=True)
    (folder / "canary/victim/file").write_text("mine")
    Image.radial_gradient("L").resize((8, 8)).save(base.image)
    environment = os.environ | {"CONVSMITH_CACHE": str(folder / "cache"), "WANDB_MODE": "disabled"}
    for words in (
        "train --preset digits --epochs 1 --data.limit 300 --name base --train.threads 1",
        "export runs/base --format torch",
        "export runs/base --format onnx",
    ):
        subprocess.run([sys.executable, "-m", "convsmith.cli", *words.split()], cwd=folder, env=environment, check=True)
    return base


def environment(base: Base, folder: Path) -> dict[str, str]:
    return {
        "CONVSMITH_CACHE": str(base.folder / "cache"),
        "HOME": str(folder / "home"),
        "TORCH_HOME": str(folder / "torch"),
        "TMPDIR": str(folder / "tmp"),
        "MPLCONFIGDIR": str(folder / "home"),
        "WANDB_API_KEY": "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "default",
    }


def start_child(base: Base, cases: list[tuple[int, Case, Path, list[str]]], records: int) -> int:
    """A fork of this process, which has imported torch; it performs `cases` and writes a JSON line on each."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    for category in (UserWarning, RuntimeWarning, FutureWarning):  # what Python shows by itself
        warnings.filterwarnings("always", category=category)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    for number, case, folder, argv in cases:
        os.chdir(folder)
        os.environ.update(environment(base, folder))
        tempfile.tempdir = None  # it was found before
        for path, descriptor in ((Path(os.devnull), 0), (folder.parent / "out", 1), (folder.parent / "error", 2)):
            opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.dup2(opened, descriptor)
            os.close(opened)
        if case.real:
            _mark("begin", number)
            program = Path(sys.executable).with_name("convsmith")
            os.execv(program, [str(program), *argv])
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the highest is counted from here
        _mark("begin", number)
        began, code = time.perf_counter(), 1
        try:
            code = main(argv) if case.direct is None else _read(case.direct, Path("run" if case.in_run else argv[-1]))
        except BaseException:
            traceback.print_exc()
        seconds = time.perf_counter() - began
        sys.stdout.flush()
        sys.stderr.flush()
        _mark("end", number)
        megabytes = max(_memory("VmHWM") - before, 0) / 1000
        os.write(records, json.dumps({"code": code, "seconds": seconds, "megabytes": megabytes}).encode() + b"\n")
    os._exit(0)


def _memory(name: str) -> int:
    """Of this process, in kB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def _read(function: Callable[[Path], object], path: Path) -> int:
    try:
        function(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def perform(base: Base, cases: list[tuple[int, Case, Path, list[str]]]) -> Iterator[dict[str, Any]]:
    """How each of the cases ended: its exit code (-signal; None after SECONDS), seconds and memory."""
    while cases:
        read, write = os.pipe()
        os.set_inheritable(write, cases[0][1].real)  # its end says when the process ends
        began, late = time.perf_counter(), False
        child = start_child(base, cases, write)
        os.close(write)
        with os.fdopen(read, "rb", 0) as lines:
            while cases and not late:
                late = not select.select([lines], [], [], SECONDS * (3 if cases[0][1].real else 1))[0]
                if late or not (line := lines.readline()):
                    break
                cases = cases[1:]
                yield json.loads(line)
        if late:
            os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if cases:  # it died over this one, or was a process of its own
            _mark("end", cases[0][0])
            code = None if late else os.waitstatus_to_exitcode(status)
            yield {"code": code, "seconds": time.perf_counter() - began, "megabytes": usage.ru_maxrss / 1000}
            cases = cases[1:]


def inside(base: Base, kind: str, every: int, minutes: float) -> None:
    """What runs under strace: every command of a kind, between two openings of a file that mark it in the trace."""
    os.environ |= {"ORT_DISABLE_TELEMETRY": "1", crash.VARIABLE: "1"}  # the first as convsmith does before its import
    import matplotlib.figure
    import onnxruntime
    import pyarrow.parquet
    import sklearn.datasets
    import torch
    import torchvision  # noqa: F401

    assert matplotlib.figure
    assert onnxruntime
    assert pyarrow.parquet
    assert sklearn.datasets
    torch.set_num_threads(1)  # a pool of threads would not survive the forks
    _mark("parent", 0)
    cases = list(enumerate(kinds()[kind](base)))[::every]
    random.Random(0).shuffle(cases)  # so that what is done when the time is up is a fair sample
    print(len(cases), flush=True)
    size, minutes = (1, 4 * minutes) if cases[0][1].real else (25, minutes)
    began = time.perf_counter()
    for first in range(0, len(cases), size):
        if time.perf_counter() - began > 60 * minutes:
            break
        with tempfile.TemporaryDirectory(dir=base.folder) as place:
            batch = []
            for number, case in cases[first : first + size]:
                folder = Path(place, str(number), "work")
                for name in (folder, folder / "home", folder / "tmp"):
                    name.mkdir(parents=True)
                batch.append((number, case, folder, case.write(base, folder)))
            for (number, case, folder, argv), ended in zip(batch, perform(base, batch), strict=True):
                texts = [_text(folder.parent / name) for name in ("out", "error")]
                record = {"number": number, "name": case.name, "argv": argv, "folder": str(folder), **ended}
                touched = base.canary.exists() or _victims(base) != ["file:mine", "folder"]
                print(json.dumps({**record, "touched": touched, "out": texts[0], "error": texts[1]}), flush=True)
                if touched:
                    shutil.rmtree(base.canary.parent)
                    (base.canary.parent / "victim/folder").mkdir(parents=True)
                    (base.canary.parent / "victim/file").write_text("mine")
            subprocess.run(["chmod", "-R", "u+w", place], check=False, capture_output=True)


def _text(path: Path) -> str:
    return path.read_bytes()[-200_000:].decode("utf-8", "surrogateescape") if path.exists() else ""


def _victims(base: Base) -> list[str]:
    found = sorted((base.canary.parent / "victim").rglob("*"))
    return [f"{path.name}:{path.read_text('utf-8', 'replace')}" if path.is_file() else path.name for path in found]


def _mark(word: str, number: int) -> None:
    with suppress(FileNotFoundError):
        os.open(f"/{word}-{number}", os.O_RDONLY)


def armed(base: Base, kind: str, every: int, minutes: float) -> None:
    """Open the files carelessly, each in a fork of its own, and print how many of how many touch the canary."""
    cases = [case for case in list(kinds()[kind](base))[::every] if case.armed]
    random.Random(0).shuffle(cases)
    began, tried, hit = time.perf_counter(), 0, 0
    for case in cases:
        if time.perf_counter() - began > 60 * minutes:
            break
        with tempfile.TemporaryDirectory(dir=base.folder) as place:
            case.write(base, Path(place))
            child = os.fork()
            if child == 0:
                null = os.open(os.devnull, os.O_RDWR)
                for number in (0, 1, 2):
                    os.dup2(null, number)
                resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
                signal.alarm(5)
                os.chdir(place)
                with suppress(BaseException):
                    case.armed(next(path for path in Path(place).iterdir() if path.is_file()))
                os._exit(0)
            os.waitpid(child, 0)
            tried += 1
            hit += base.canary.exists()
            base.canary.unlink(missing_ok=True)
    print(json.dumps({"of": len(cases), "tried": tried, "hit": hit}))


_LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")


def traced(trace: Path) -> dict[int, list[tuple[str, str]]]:
    """System calls (name, text) of each command's processes, by its number."""
    found: dict[int, list[tuple[str, str]]] = {}
    number, outer = None, None
    unfinished: dict[str, str] = {}
    with trace.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if (resumed := re.match(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$", line)) and resumed[1] in unfinished:
                line = unfinished.pop(resumed[1]) + resumed[2]
            if (match := _LINE.match(line)) is None:
                continue
            if "<unfinished ...>" in line:
                unfinished[match[1]] = line.replace("<unfinished ...>", "").rstrip()
                continue
            if mark := re.search(r'"/(parent|begin|end)-(\d+)"', line):
                outer = match[1] if mark[1] == "parent" else outer
                number = int(mark[2]) if mark[1] == "begin" else None
            elif number is not None and match[1] != outer:
                found.setdefault(number, []).append((match[2], match[3].rstrip()))
    return found


def judged(calls: list[tuple[str, str]], allowed: list[str], folder: str) -> tuple[list[str], list[str], list[str]]:
    """Unexpected programs, writes outside `allowed`, and connections to other machines."""
    programs, writes, connections = [], [], []
    for name, text in calls:
        if text.rfind(" = -1 ") > text.rfind('"'):
            continue  # it failed
        quoted = [_unescaped(word) for word in re.findall(r'"((?:[^"\\]|\\.)*)"', text)]
        if name.startswith("execve"):
            if Path(quoted[0]).name not in EXPECTED:
                programs.append(" ".join(quoted[:4]))
        elif name == "connect":
            if "AF_INET" in text:
                connections.append(text)
        elif name == "socket":
            continue
        elif not name.startswith(("open", "creat")) or _WRITES.search(text):
            real = re.search(r"= \d+<([^>]*)>", text)
            places = (
                [real[1].removesuffix(" (deleted)")] if real else [os.path.join(folder, word) for word in quoted[:2]]
            )
            writes += [f"{name} {place}" for place in places if not os.path.normpath(place).startswith(tuple(allowed))]
    return programs, writes, connections


def _unescaped(word: str) -> str:
    return (
        word.encode("latin-1", "replace")
        .decode("unicode_escape", "replace")
        .encode("latin-1", "replace")
        .decode("utf-8", "replace")
    )


def summarise(base: Base, records: list[dict[str, Any]], trace: Path) -> tuple[dict[str, Any], list[str]]:
    """Counts of a kind, and a line on each command that did not end as it should."""
    counts: Counter[str] = Counter()
    calls = traced(trace)
    problems: list[str] = []
    for record in records:
        allowed = [
            str(Path(record["folder"]).parent),
            str(base.folder / "cache"),
            "/dev/null",
            "/dev/shm/",
            "/dev/pts",
            "/proc/",
            "pipe:",
            "socket:",
        ]
        programs, writes, connections = judged(calls.get(record["number"], []), allowed, record["folder"])
        error, code = record["error"], record["code"]
        lines = [line for line in error.splitlines() if line.strip()]
        found = {
            "executions": len(programs) + (record["touched"] and not writes),
            "writes": len(writes),
            "connections": len(connections) if SETS.isdisjoint(record["argv"]) else 0,
            "tracebacks": "Traceback (most recent call last)" in error + record["out"],
            "long_errors": code in (1, 2) and (len(lines) != 1 or not lines[0].startswith(("error: ", "failed: "))),
            "escapes": bool(
                re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", error + record["out"])
            ),
            "crashes": code is not None and (code < 0 or code not in (0, 1, 2, 130, 143)),
            "timeouts": code is None,
        }
        counts.update({name: int(value) for name, value in found.items()})
        counts["refused" if code in (1, 2) else "carried_out" if code == 0 else "neither"] += 1
        if any(found.values()):
            what = {name: value for name, value in found.items() if value}
            seen = [*programs, *writes, *connections][:6]
            problems.append(f"{record['name']} {what} {record['argv']} {seen} {' | '.join(lines[-3:])[:300]}")
    slowest = max(records, key=lambda record: record["seconds"])
    largest = max(records, key=lambda record: record["megabytes"])
    counted = {
        "commands": len(records),
        **{name: counts[name] for name in ("refused", "carried_out", *BAD)},
        "slowest_seconds": round(slowest["seconds"], 2),
        "slowest": slowest["name"],
        "most_megabytes": round(largest["megabytes"]),
        "largest": largest["name"],
    }
    return counted, problems


def examine(original: Path, folder: Path, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """The result of one kind, from a copy of the base of its own."""
    began = time.perf_counter()
    shutil.copytree(original, folder / "base")
    base = Base(folder / "base", folder / "base/canary/touched")
    again = [sys.executable, __file__, "--base", str(base.folder), "--every", str(args.every)]
    again += ["--minutes", str(args.minutes)]
    strace = ["strace", "-f", "-y", "--seccomp-bpf", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(folder / "trace")]
    done = subprocess.run([*strace, *again, "--inside", kind], stdout=subprocess.PIPE, text=True, check=True)
    of, *records = [json.loads(line) for line in done.stdout.splitlines()]
    result, problems = summarise(base, records, folder / "trace")
    result["of"] = of
    tried = subprocess.run([*again, "--armed", kind], stdout=subprocess.PIPE, text=True, check=True)
    result["armed"] = json.loads(tried.stdout)
    print(f"{kind}, {time.perf_counter() - began:.0f} s: {json.dumps(result)}", flush=True)
    if args.show:
        print("\n".join(f"  {kind}: {problem}" for problem in problems), flush=True)
    return result


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help="default: all; named ones replace theirs in the result"
    )
    parser.add_argument("--every", type=int, default=1, help="only each so-many-th command [1]")
    parser.add_argument("--jobs", type=int, default=2, help="kinds at the same time [2]")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="time for each kind, in random order [60]; new processes: x4"
    )
    parser.add_argument("--show", action="store_true", help="print each command that did not end as it should")
    parser.add_argument("--base", type=Path, help="folder of the run that files are made from [a temporary one]")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--armed", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside or args.armed:
        base = Base(args.base, args.base / "canary/touched")
        warnings.simplefilter("ignore")  # of the libraries that make the files
        if args.inside:
            inside(base, args.inside, args.every, args.minutes)
        else:
            armed(base, args.armed, args.every, args.minutes)
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        base = prepare(args.base or Path(folder, "base"))
        wanted = args.kinds or list(kinds())
        done = pool.map(lambda kind: examine(base.folder, Path(folder, kind), kind, args), wanted)
        results = dict(zip(wanted, done, strict=True))
    before = json.loads(RESULT.read_text(encoding="utf-8"))["kinds"] if args.kinds and RESULT.exists() else {}
    found = before | results
    totals = {
        name: sum(kind[name] for kind in found.values()) for name in ("commands", "of", "refused", "carried_out", *BAD)
    }
    totals |= {name: max(kind[name] for kind in found.values()) for name in ("slowest_seconds", "most_megabytes")}
    print(json.dumps(totals))
    if args.every == 1:
        machine = {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
        text = json.dumps({"machine": machine, "totals": totals, "kinds": found}, indent=2)
        RESULT.write_text(text + "\n", encoding="utf-8")
    sys.exit(any(totals[name] for name in BAD))


if __name__ == "__main__":
    run()
