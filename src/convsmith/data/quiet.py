"""``with quiet:`` suppresses warnings, in any number of threads at once, and what libtiff prints. Suppresses no errors.

libtiff writes its warnings and errors to stderr itself, past Python, although Pillow raises the errors. They are
switched off by the functions that libtiff has for that, for which ctypes asks the very library that Pillow uses. To
send the file descriptor of stderr elsewhere would lose the lines of other threads. Where Pillow hides libtiff, as on
Windows, nothing is switched off.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import PIL._imaging

Setter = Callable[[Any], Any]


@functools.cache
def _setters() -> tuple[Setter, ...]:
    """libtiff's functions that take a handler of messages, or none, and return the one before (TIFFError(3))."""
    try:
        library = ctypes.CDLL(PIL._imaging.__file__)  # whose libraries are searched, too
        found = library.TIFFSetWarningHandler, library.TIFFSetErrorHandler
    except (AttributeError, OSError):
        return ()
    for setter in found:
        setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
    return found


class _Quiet:
    """Counts its users, since overlapping `warnings.catch_warnings` in threads would restore each other's filters."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()
        self._handlers: list[Any] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
                self._handlers = [setter(None) for setter in _setters()]
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)
                for setter, handler in zip(_setters(), self._handlers, strict=True):
                    setter(handler)


quiet = _Quiet()
