"""The evidence book's digest: the effect of each arm of the shipped studies, and the setting it was measured in.

The full results are in docs/results/evidence; benchmarks/evidence_book.py makes the digest and the page from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convsmith.files import read_json
from convsmith.transfer.config import NO_WEIGHTS

DIGEST = Path(__file__).with_name("digest.json")


def results() -> dict[str, dict[str, Any]]:
    """The digest: study -> its record, in the page's order.

    A record holds metric, folds, repeats, seeds, data, n_images, n_classes, epochs; `base`, the setting of the net that
    the arms change: model, weights, optimizer, lr, batch_size, image_size; and `arms`, each with name, changes,
    difference, ci95, p_holm and verdict, as ablation.json has them.
    """
    return dict(read_json(DIGEST))


def worth() -> str:
    """What pretrained weights were worth in the evidence book, over random ones of the same network, in words."""
    differences = {
        study: -arm["difference"] * 100
        for study, record in results().items()
        for arm in record["arms"]
        if arm["changes"].get("transfer.weights") == NO_WEIGHTS and record["metric"] == "accuracy"
    }
    low, high = min(differences.values()), max(differences.values())
    return f"worth {low:.0f} to {high:.0f} points over random ones in {', '.join(differences)} of docs/evidence.md"
