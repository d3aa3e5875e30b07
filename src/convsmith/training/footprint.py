"""What a training needs of memory, held against what there is: a batch size that fits, refusals and notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from convsmith import memory
from convsmith.config import RunConfig
from convsmith.contracts import Batch, size_word
from convsmith.data.dataset import Dataset
from convsmith.errors import UserError
from convsmith.nets.config import MODELS
from convsmith.nets.shapes import Estimate, LayerRow, estimate
from convsmith.optim.config import OPTIMIZERS
from convsmith.precision import BFLOAT16, FLOAT32
from convsmith.training.config import AUTO
from convsmith.training.gather import first_images, image_epochs, recipe_of
from convsmith.training.layout import seconds_per_step, variants
from convsmith.transfer.features import PASS_BATCH
from convsmith.transfer.unfreezing import Finetuning

#: The share of the free memory that the estimate of an automatic batch size may fill on the CPU. Measured peaks of 11
#: networks were 0.6 to 1.6 times the estimate: kernels need room of their own, and freed memory lies in pieces.
CPU_SHARE = 0.5
CUDA_SHARE = 0.9  # of the memory of the card, for the measured peak of a step
SMALLEST = 2  # an image alone cannot train batch norm


def needs(config: RunConfig, layers: Sequence[LayerRow], finetuning: Finetuning | None) -> Estimate:
    """The expected memory of a training. For the user's own optimiser, two values per parameter are assumed."""
    if not image_epochs(config, finetuning):  # one pass through the frozen backbone, then the head on its features
        return estimate(layers, batch=PASS_BATCH, state_per_parameter=0, backward=False)
    return estimate(layers, batch=config.train.batch, state_per_parameter=_state_per_parameter(config))


def _state_per_parameter(config: RunConfig) -> int:
    kept = 2 if config.optim.is_own else OPTIMIZERS[config.optim.name].state_per_parameter
    return kept + bool(config.train.ema)


def sizes(config: RunConfig) -> str:
    """The settings on which memory depends, with their values, in the words of the command line."""
    named = [f"train.batch_size {config.train.batch_size}"]
    if config.data.image_size:
        named.append(f"data.image_size {size_word(config.data.image_size)}")
    model = config.model
    used = MODELS[model.name].uses if model.name in MODELS else frozenset[str]()
    if "width" in used:
        named.append(f"model.width {model.width}")
    elif model.blocks:
        named.append(f"model.blocks of up to {max(block.channels for block in model.blocks)} channels")
    else:
        named.append(f"model.name {model.name}")
    if model.hidden:
        named.append(f"model.hidden {list(model.hidden)}")
    return f"{', '.join(named[:-1])} and {named[-1]}"


def fix(config: RunConfig) -> str:
    """What to do where memory runs out before a run has started."""
    automatic = "" if config.train.batch_size == AUTO else " (train.batch_size auto finds a batch size that fits)"
    return f"lower one of {sizes(config)}{automatic}{halving(config)}, or end other programs"


def halving(config: RunConfig) -> str:
    """Advice for a training on an accelerator in float32: the precision that halves its activations."""
    train = config.train
    if train.device in (AUTO, "cpu") or train.precision != FLOAT32:
        return ""
    return f", set train.precision {BFLOAT16} instead of {FLOAT32}"


def against_available(
    config: RunConfig,
    layers: Sequence[LayerRow],
    finetuning: Finetuning | None,
    train_images: int,
    device: torch.device,
) -> tuple[str, ...]:
    """A note where a training may need more memory than there is; a UserError where it certainly does.

    The weights, and the input and the output of the widest layer, are needed at once in any case.
    """
    there = available(device)
    expected = needs(config, layers, finetuning).memory
    if there is None or expected <= there:
        return ()
    batch = min(config.train.batch, train_images) if image_epochs(config, finetuning) else PASS_BATCH
    certain = estimate(layers, batch=batch, state_per_parameter=0, backward=False).memory
    if certain > there:
        raise UserError(
            f"this training needs at least {memory.as_text(certain)} of memory, but {memory.as_text(there)} are "
            f"available: {fix(config)}"
        )
    return (
        f"this training may run out of memory: it is expected to need about {memory.as_text(expected)}, and "
        f"{memory.as_text(there)} are available; if it does, {fix(config)}",
    )


def fitting_batch(
    config: RunConfig,
    layers: Sequence[LayerRow],
    finetuning: Finetuning | None,
    dataset: Dataset,
    model: nn.Module,
    device: torch.device,
) -> tuple[int, str]:
    """The largest batch size that fits, of the config's own and its halves, and a sentence on why.

    On the CPU the expected memory of a training must fit into half of what is available. On an accelerator a step is
    tried. `finetuning` should be in its last phase, which needs most.
    """
    largest = config.train.batch

    def expected(size: int) -> Estimate:
        return needs(config.with_values(train={"batch_size": size}), layers, finetuning)

    if device.type != "cpu" and image_epochs(config, finetuning):
        size = halved(largest, lambda size: _step_fits(size, config, dataset, model, device))
        why = f"a step fits into the memory of this {device.type} device"
    elif (there := available(device)) is None:
        return (
            largest,
            f"train.batch_size auto: {largest}, the default, since this system does not tell its free memory",
        )
    else:
        size = halved(largest, lambda size: expected(size).memory <= CPU_SHARE * there)
        why = (
            f"about {memory.as_text(expected(size).memory)} are expected to be needed, and half of the "
            f"{memory.as_text(there)} that are available may be used"
        )
    what = "the default" if size == largest else f"lowered from the default of {largest} until it fits"
    return size, f"train.batch_size auto: {size}, {what}: {why}"


def halved(largest: int, fits: Callable[[int], bool]) -> int:
    """`largest`, halved until it `fits`, but at least `SMALLEST`."""
    size = largest
    while size > SMALLEST and not fits(size):
        size = max(size // 2, SMALLEST)
    return size


def available(device: torch.device) -> int | None:
    """The bytes that a training can still take on its device, or None where that is unknown."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return memory.available()


def _step_fits(size: int, config: RunConfig, dataset: Dataset, model: nn.Module, device: torch.device) -> bool:
    """Whether the two passes over a batch of this size succeed, on CUDA with room for the optimiser as well."""
    one = first_images(dataset, 1, device)
    there = available(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    layout = "contiguous" if config.train.layout == AUTO else config.train.layout
    ways = variants([layout], config.train.precision, device)[:1]  # float32 where it is open, which needs most
    try:
        batch = Batch(one.repeat(size, 1, 1, 1), torch.zeros(size, dtype=torch.int64, device=device))
        seconds_per_step(model.to(device), batch, recipe_of(config, dataset, device).loss, ways, device, budget=0)
    except Exception as error:
        if not memory.ran_out(error):
            raise
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if device.type != "cuda":
        return True
    assert there is not None
    state = _state_per_parameter(config) * sum(value.nbytes for value in model.parameters())
    return bool(torch.cuda.max_memory_allocated(device) - before + state <= CUDA_SHARE * there)
