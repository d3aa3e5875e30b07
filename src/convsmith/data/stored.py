"""Arrays in the cache folder, in files whose damage is noticed. Does not know what the arrays mean."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convsmith.files import written_whole

Arrays = dict[str, npt.NDArray[Any]]
Form = tuple[type[np.generic], tuple[int | None, ...]]  # type of the values, and shape, in which None is any length


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays by name as an .npz file, atomically, which holds a CRC-32 of each. Raises OSError."""
    with written_whole(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, **forms: Form) -> Arrays | None:
    """The arrays that `write_arrays` wrote; None if the file is missing or damaged, or if they are not of `forms`.

    Raises MemoryError where there is no room for them.
    """
    try:
        # NumPy checks a checksum only if it reads an array to its end, which a damaged shape can prevent.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except MemoryError:  # no fault of the file, whose arrays have the checksums that they were written with
        raise
    except Exception:  # damaged files make zipfile and NumPy raise errors of many kinds
        return None
    return arrays if arrays.keys() == forms.keys() and all(_is(arrays[name], forms[name]) for name in forms) else None


def _is(array: npt.NDArray[Any], form: Form) -> bool:
    kind, shape = form
    if array.ndim != len(shape) or not np.issubdtype(array.dtype, kind):
        return False
    return all(want in (None, have) for have, want in zip(array.shape, shape, strict=True))
