"""How large the gradients are, layer by layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def gradient_rms(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Root mean square of the gradient with respect to the weights of each convolution and linear layer, in order.

    `images` float [N, C, H, W], `labels` int64 [N]; the loss is the mean cross-entropy in nats. The model's own
    gradients are left as None. In a chain of saturating activations the values fall towards the first layer: the
    vanishing gradients of Hochreiter (1991) and Glorot and Bengio (2010).
    """
    model.zero_grad(set_to_none=True)
    cross_entropy(model(images), labels).backward()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.grad is not None:
            found[name] = float(module.weight.grad.square().mean().sqrt())
    model.zero_grad(set_to_none=True)
    return found
