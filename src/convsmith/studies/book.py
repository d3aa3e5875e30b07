"""The evidence book's digest: the effect of each arm of the shipped studies, and the setting it was measured in.

The full results are in docs/results/evidence; benchmarks/evidence_book.py makes the digest and the page from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convsmith.config import RunConfig
from convsmith.files import read_json

DIGEST = Path(__file__).with_name("digest.json")
CLASSES = {"cifar10": 10, "ants_bees": 2}  # of the data that the shipped studies were run on
KEPT = ("metric", "folds", "repeats", "seeds", "data", "n_images", "epochs")
KEPT_OF_ARM = ("name", "changes", "difference", "ci95", "p_holm", "verdict")


def results() -> dict[str, dict[str, Any]]:
    """The digest: study -> its record, in the page's order.

    A record holds metric, folds, repeats, seeds, data, n_images, n_classes, epochs; `base`, the setting of the net that
    the arms change: model, weights, optimizer, lr, batch_size, image_size; and `arms`, each with name, changes,
    difference, ci95, p_holm and verdict, as ablation.json has them.
    """
    return dict(read_json(DIGEST))


def digest_of(record: Mapping[str, Any], base: RunConfig) -> dict[str, Any]:
    """The part of an ablation.json, whose base was trained with the config `base`, that the digest keeps."""
    return {
        **{key: record[key] for key in KEPT},
        "n_classes": CLASSES[record["data"]],
        "base": {
            "model": base.model.name,
            "weights": "none" if base.transfer.weights == "none" else "pretrained",
            "optimizer": base.optim.name,
            "lr": base.optim.lr,
            "batch_size": base.train.batch_size,
            "image_size": base.data.image_size,
        },
        "arms": [{key: arm[key] for key in KEPT_OF_ARM} for arm in record["arms"]],
    }
