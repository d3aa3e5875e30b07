"""``with quiet:`` suppresses warnings, in any number of threads at once. Suppresses no errors."""

from __future__ import annotations

import threading
import warnings


class _Quiet:
    """Counts its users, since overlapping `warnings.catch_warnings` in threads would restore each other's filters."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


quiet = _Quiet()
