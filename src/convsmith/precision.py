"""In which number format a network computes: what a device has instructions for, and the context of a forward pass.

Weights, the statistics of norms, losses, optimisers, averages and files are float32 in all of them.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convsmith.errors import UserError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16", "float16"]
FLOAT32, BFLOAT16, FLOAT16 = "float32", "bfloat16", "float16"

#: Instructions that multiply bfloat16, as torch names them and Linux does: of x86, and `bf16` of ARM.
_CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
_AMPERE = 8  # the major compute capability from which NVIDIA's cards multiply bfloat16; older ones emulate it


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass whose convolutions and matrix products compute in `precision`, by torch's autocast.

    What leaves it may be of that type: losses and scores take `.float()` of it.
    """
    import torch

    if precision == FLOAT32:
        return nullcontext()
    return torch.autocast(device.type, dtype={BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}[precision])


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; others compute in it as well, but as a rule more slowly."""
    import torch

    if device.type == "cpu":
        return not _cpu_instructions().isdisjoint(_CPU_INSTRUCTIONS)
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= _AMPERE
    return False


def refuse_unfit_device(precision: str, device: torch.device) -> None:
    """Raise UserError for float16 where there is no CUDA: its gradients need the scaling that torch has there."""
    if precision == FLOAT16 and device.type != "cuda":
        raise UserError(
            f"train.precision float16 needs a CUDA device, but this training would compute on '{device.type}': set "
            "train.precision to auto, float32 or bfloat16"
        )


def _cpu_instructions() -> set[str]:
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, there in torch.cpu.get_capabilities().items() if there is True}
    facts = Path("/proc/cpuinfo")  # an older torch does not tell
    return set(facts.read_text(encoding="utf-8", errors="replace").split()) if sys.platform == "linux" else set()
