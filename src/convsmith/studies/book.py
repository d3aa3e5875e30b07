"""The evidence book's digest: the effect of each arm of the shipped studies, and the setting it was measured in.

The full results are in docs/results/evidence; benchmarks/evidence_book.py makes the digest and the page from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convsmith.files import read_json
from convsmith.records import shown
from convsmith.transfer.config import NO_WEIGHTS

DIGEST = Path(__file__).with_name("digest.json")


def results() -> dict[str, dict[str, Any]]:
    """The digest: study -> its record, in the page's order.

    A record holds metric, folds, repeats, seeds, data, n_images, n_classes, epochs, and the test where it is not that
    over folds; `base`, the setting of the net that the arms change, and what it reached: model, weights, optimizer, lr,
    batch_size, image_size, accuracy; and `arms`, each with name, changes, difference, ci95, p_holm and verdict, as
    ablation.json has them.
    """
    return dict(read_json(DIGEST))


def images_per_class(study: Mapping[str, Any]) -> float:
    """The number of training images per class in each fold of a study of the digest."""
    return float(study["n_images"] * (1 - 1 / study["folds"]) / study["n_classes"])


def regime(study: Mapping[str, Any]) -> str:
    """The regime in which a study of the digest was measured, in words: its net, images, epochs and accuracy."""
    base = study["base"]
    weights = "pretrained weights" if base["weights"] != "none" else "random weights"
    return (
        f"{base['model']} with {weights}, {images_per_class(study):.0f} training images per class of {study['data']}, "
        f"{study['epochs']} epochs, with which the base reaches {shown('accuracy', base['accuracy'])}"
    )


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
