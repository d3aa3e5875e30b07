"""A network, an optimiser and arrays of your own, in convsmith's loop with its run directory.

python examples/03_own_network.py
"""

import numpy as np
import torch
from torch import nn

import convsmith

rng = np.random.default_rng(0)
images = rng.integers(0, 100, (600, 12, 12), dtype=np.uint8)
labels = np.where(np.arange(600) % 2, "bright", "dark")
images[labels == "bright"] += 60


class Tiny(nn.Module):
    """float [B, 1, 12, 12] -> logits [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


run = convsmith.train(
    data=(images, labels),
    model=Tiny(),
    optimizer=lambda groups: torch.optim.NAdam(groups, lr=1e-3),
    epochs=4,
)
print(convsmith.load(run.directory, model=Tiny()).predict(images[:2]))
