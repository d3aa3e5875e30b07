"""The machine of a run: device, threads, seeds, signals, and a record of the environment. Knows no networks."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import stat
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from convsmith.errors import UserError
from convsmith.launch import place
from convsmith.processes import git_revision

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "convsmith",
    "torch",
    "torchvision",
    "wandb",
    "numpy",
    "scikit-learn",
    "matplotlib",
    "pillow",
)


def device_names() -> list[str]:
    """The devices of this machine, the fastest first; `cpu` is always last."""
    import torch

    names = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def select_device(name: str) -> torch.device:
    """The named device, or the fastest one for `auto`; raises UserError for a device that the machine does not have."""
    import torch

    here = device_names()
    if name != "auto" and name not in here:
        raise UserError(f"train.device: this machine has no '{name}'. Choices: auto, {', '.join(here)}")
    return torch.device(here[0] if name == "auto" else name)


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int | None) -> int:
    """Set torch's CPU threads: `threads`, or else at most one per core that this process may use; returns the number.

    Processes that train together on a machine divide its cores; torchrun has set OMP_NUM_THREADS to 1 for them.

    Floating-point sums depend on how the work is divided, so the number is part of the resolved config.
    """
    import torch

    here = place()
    most = torch.get_num_threads() if here.size == 1 else max(1, usable_cores() // here.local_size)
    number = threads or min(most, usable_cores())
    torch.set_num_threads(number)
    return number


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, instead of returning it to the system and requesting it again.

    Each step on the CPU frees and allocates its activations; pages that the system has to clear take a fifth of the
    time or more (`benchmarks/memory_kept.py`). Up to 2 GB are kept. On other systems this does nothing. The constants
    are from mallopt(3).
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    trim_threshold, mmap_max = -1, -4
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)  # allocate large blocks on the heap, too


def return_freed_memory() -> None:
    """Have glibc return the memory that is free now to the system, whatever its size: malloc_trim(3)."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed torch's global generators (initialisation, dropout) and choose its kernels.

    Kernels of the CPU are deterministic. On CUDA `deterministic` asks for those that give the same bits each time;
    otherwise cuDNN measures which are the fastest, and float32 matrix products may be computed as TF32.
    """
    import torch

    torch.manual_seed(seed)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = not deterministic
        torch.set_float32_matmul_precision("highest" if deterministic else "high")
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, and never read


def installed(package: str) -> str:
    """The version of a package, or "not installed", as of convsmith itself where its sources alone are there."""
    from importlib import metadata  # takes 20 ms, which `convsmith --help` need not wait for

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, Any]:
    """Versions, machine and git revision, for environment.json."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {package: installed(package) for package in PACKAGES},
        "git_revision": git_revision(),
    }


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a process to end: SIGINT, SIGTERM and, unless it is ignored (nohup), SIGHUP.

    A terminal or an ssh connection that is closed sends SIGHUP to what runs in it. Windows has none.
    """
    always = [signal.SIGINT, signal.SIGTERM]
    if sys.platform == "win32" or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return always
    return [*always, signal.SIGHUP]


def leave_closed_terminal() -> None:
    """Discard what is printed from now on if it went to a terminal that is closed, since writing to it is an error."""
    with suppress(OSError), open(os.devnull, "wb") as nowhere:
        for descriptor in (1, 2):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(nowhere.fileno(), descriptor)


class Interrupts:
    """A context in which the first of `ending_signals` is only recorded; a second one ends the process as usual.

    Handlers can be set only in the main thread; in other threads, signals keep their usual meaning.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in ending_signals():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        leave_closed_terminal()
        for known, handler in self._before.items():
            # A terminal that closes sends SIGHUP twice: its shell to the jobs, and the kernel when the shell has ended.
            is_hangup = sys.platform != "win32" and known == signal.SIGHUP
            signal.signal(known, signal.SIG_IGN if is_hangup else handler)
