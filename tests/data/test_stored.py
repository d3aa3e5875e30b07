from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convsmith.data.stored import Form, read_arrays, write_arrays

ARRAYS = {"numbers": np.arange(12).reshape(4, 3), "words": np.array(["one", "three"])}
FORMS: dict[str, Form] = {"numbers": (np.int64, (None, 3)), "words": (np.str_, (2,))}


def test_a_flipped_bit_or_a_cut_is_noticed_or_has_no_effect(tmp_path: Path) -> None:
    write_arrays(path := tmp_path / "arrays.npz", ARRAYS)
    whole = path.read_bytes()
    assert repr(read_arrays(path, **FORMS)) == repr(ARRAYS)
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        assert repr(read_arrays(path, **FORMS)) in (repr(ARRAYS), "None"), at
        path.write_bytes(whole[:at])
        assert read_arrays(path, **FORMS) is None


@pytest.mark.parametrize(
    "arrays",
    [
        {"numbers": np.arange(12.0).reshape(4, 3)},
        {"numbers": np.arange(12)},
        {"numbers": np.arange(12).reshape(3, 4)},
        {"words": np.array([1, 2])},
        {"words": np.array([b"one", b"three"])},
        {"words": np.array(["one", 3], dtype=object)},
        {"more": np.zeros(1)},
    ],
)
def test_arrays_of_another_form_are_not_read(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_arrays(path := tmp_path / "arrays.npz", ARRAYS | arrays)
    assert read_arrays(path, **FORMS) is None


def test_what_is_missing_or_no_file_is_not_read(tmp_path: Path) -> None:
    assert read_arrays(tmp_path / "none.npz") is None
    assert read_arrays(tmp_path) is None


def test_memory_that_runs_out_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_left(*_: object, **__: object) -> None:
        raise MemoryError

    write_arrays(path := tmp_path / "arrays.npz", ARRAYS)
    monkeypatch.setattr(np, "load", nothing_left)
    with pytest.raises(MemoryError):
        read_arrays(path, **FORMS)
