"""The evidence book: run its studies, and make docs/evidence.md of what they found.

python benchmarks/evidence_book.py run CIFAR10_PARQUET_FOLDER [--only STUDY ...]   can be stopped and called again
python benchmarks/evidence_book.py page

The studies of transfer learning take their weights from tf_efficientnet_lite0.safetensors in the current folder;
that of photographs is `run ANTS_BEES_FOLDER --only transfer`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from convsmith.figures.style import save
from convsmith.studies import book
from convsmith.studies.comparison import forest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "src/convsmith/studies/results"
IMAGES = ROOT / "docs/images"


def run(folder: str, only: list[str], runs_dir: str) -> None:
    for name in only or [name for name in book.shipped() if name != "transfer"]:
        command = ["ablate", name, "--data", folder, *book.FLAGS.get(name, ()), "--jobs", "2"]
        command += ["--name", name, "--runs-dir", runs_dir]
        subprocess.run([sys.executable, "-m", "convsmith.cli", *command], check=True)
        study = Path(runs_dir, name)
        record = json.loads((study / "ablation.json").read_text(encoding="utf-8"))
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def page() -> None:
    """docs/evidence.md and its figures, of the results alone."""
    for name in book.shipped():
        figure = forest(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
        assert figure, f"no arm of {name} has a difference"
        save(figure, IMAGES / f"evidence-{name}.svg")
    (ROOT / "docs/evidence.md").write_text(book.page(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--runs-dir", default="runs/evidence")
    args = parser.parse_args()
    if args.what == "run":
        if not args.folder:
            parser.error("run needs the folder of images")
        run(args.folder, args.only, args.runs_dir)
    page()


if __name__ == "__main__":
    main()
