"""The evidence book's digest: the effect of each arm of the shipped studies, and the setting it was measured in.

The full results are in docs/results/evidence; benchmarks/evidence_book.py makes the digest and the page from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convsmith.files import read_json

DIGEST = Path(__file__).with_name("digest.json")


def results() -> dict[str, dict[str, Any]]:
    """The digest: study -> its record, in the page's order.

    A record holds metric, folds, repeats, seeds, data, n_images, n_classes, epochs; `base`, the setting of the net that
    the arms change: model, weights, optimizer, lr, batch_size, image_size; and `arms`, each with name, changes,
    difference, ci95, p_holm and verdict, as ablation.json has them.
    """
    return dict(read_json(DIGEST))
