"""The figures of `convsmith explain` by name, with the options that each uses. Imports no torch: --help reads it."""

from __future__ import annotations

#: The pictures of how a net works, and which of an image (`paths`) and a `stage` each of them uses.
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
