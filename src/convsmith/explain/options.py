"""The figures of `convsmith explain` by name, with the options that each uses. No torch here, since --help reads it."""

from __future__ import annotations

#: name of a figure -> the options that it uses: an image (`paths`), a `stage`
FIGURES: dict[str, frozenset[str]] = {
    "activations": frozenset(),
    "batch-norm": frozenset({"stage"}),
    "confusion": frozenset(),
    "feature-maps": frozenset({"paths", "stage"}),
    "gradients": frozenset(),
    "kernels": frozenset({"stage"}),
    "landscape": frozenset(),
    "pooling": frozenset({"paths"}),
}
