"""How much memory is left, and one line where it runs out. Imports no torch."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convsmith.errors import OutOfMemory, RunFailed, UserError

FIX = "end other programs, or use fewer or smaller images or a smaller model"

#: What libraries say, in lower case, when an allocation fails and they raise an error of their own: torch on the CPU
#: (two wordings), for sizes beyond 64 bits, on CUDA, in cuDNN and cuBLAS, on MPS; C++; ONNX Runtime; and the system.
_SAID = (
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "storage size calculation overflowed",
    "out of memory",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "invalid buffer size",
    "bad_alloc",
    "failed to allocate memory",
    "cannot allocate memory",
)


def ran_out(error: BaseException) -> bool:
    """Whether the error says that memory could not be had, of the machine or of its accelerator."""
    if isinstance(error, RunFailed | UserError):  # it says what is to be said
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(said in str(error).lower() for said in _SAID)


@contextmanager
def explain_memory_errors(what: str, fix: str = FIX) -> Iterator[None]:
    """Turn an allocation that fails into one line that names `what` took place and how to `fix` it.

    The original error stays as the cause, without the tensors that its traceback holds.
    """
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(f"memory ran out {what}: {fix}") from error.with_traceback(None)


def available() -> int | None:
    """The bytes that this process can still take, or None where the system does not say.

    The least of what the machine has left, what is left of the limits of its control groups (of a container, or of a
    job on a cluster), and what is left of `ulimit -v`. Pages of files that the kernel would drop count as free.
    """
    left = [number for number in (_machine(), *_control_groups(), _address_space()) if number is not None]
    return max(min(left), 0) if left else None


def _machine() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf(
            "SC_PAGE_SIZE"
        )  # all that there is: how much is free is unknown
    return None


#: version of control groups -> the folder of the hierarchy, the files of limit and use, and the key of droppable pages
_GROUPS = {
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _control_groups(system: Path = Path("/sys/fs/cgroup"), of: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What is left in each control group around this process that has a limit (cgroups(7)).

    Inside a container the group's path may be that on the host, of which only the root can be seen.
    """
    try:
        lines = of.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        version = 2 if number == "0" else 1 if "memory" in controllers.split(",") else None
        if version is None:
            continue
        root, limit, usage, key = _GROUPS[version]
        inner = Path(path.lstrip("/"))
        for group in (system / root / inner, *(system / root / above for above in inner.parents)):
            with suppress(OSError, ValueError):  # no such file, or the word max
                used = int((group / usage).read_text(encoding="ascii"))
                stat = (group / "memory.stat").read_text(encoding="ascii").splitlines()
                droppable = sum(int(row.split()[1]) for row in stat if row.split()[:1] == [key])
                yield int((group / limit).read_text(encoding="ascii")) - used + droppable


def _address_space() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return limit - pages * resource.getpagesize()
    return limit


def as_text(size: float) -> str:
    """A number of bytes for a sentence, such as 17.7 GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.0f} MB"
