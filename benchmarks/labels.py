"""How long a table of labels with a million rows takes, and the memory that it needs.

    python benchmarks/labels.py [--rows 1000000]

Measured is all from the opened folder's list of files to the labels, as `train` reads them, in processes of their own;
the list is made here, since a million files would be a measurement of the disk. A row names its image by the path, by
the file's name alone, or by the name without its suffix. The results go to docs/results/labels.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "labels.json"
READ = """
import json, resource, sys, time
from pathlib import Path

from convsmith.data.config import DataConfig
from convsmith.data.labels import open_labelled
from convsmith.data.source import File, Tree

table, rows = Path(sys.argv[1]), int(sys.argv[2])
files = [File(f"train/{number % 1000:03d}/{number:07d}.jpg", 1, 1) for number in range(rows)]
tree = Tree(sorted(files), [], {})
del files
before, began, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
config = DataConfig(source=str(table.parent), labels=str(table))
source = open_labelled(table.parent, tree, table.parent.joinpath, config)
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
assert len(source) == rows and len(source.classes) == 10
mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"seconds": seconds, "cpu": cpu, "mb": mb}))
"""
CELLS = {
    "path": "train/{folder:03d}/{number:07d}.jpg",
    "name": "{number:07d}.jpg",
    "name without suffix": "{number:07d}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    count = parser.parse_args().rows
    result: dict[str, object] = {"rows": count}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "labels.csv"
        for kind, cell in CELLS.items():
            with table.open("w", encoding="utf-8") as file:
                file.write("image,label\n")
                file.writelines(f"{cell.format(folder=n % 1000, number=n)},{n % 10}\n" for n in range(count))
            command = [sys.executable, "-c", READ, str(table), str(count)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            result[kind] = json.loads(done.stdout)
            print(f"{kind:20} {result[kind]}")
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
