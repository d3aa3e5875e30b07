from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own: none touches the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CONVSMITH_CACHE", str(folder))
    return folder


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of random PNG images of the given size at the given relative paths."""

    def plant(*paths: str, size: tuple[int, int] = (12, 12), root: str = "data") -> Path:
        for path in paths:
            file = tmp_path / root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            seed = zlib.crc32(path.encode())
            pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, format="PNG")
        return tmp_path / root

    return plant


def shared(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"needs {path}")
    return path


@pytest.fixture(scope="session")
def pngsuite() -> Path:
    return shared("pngsuite")


@pytest.fixture(scope="session")
def ants_bees() -> Path:
    return shared("ants_bees")


@pytest.fixture(scope="session")
def cifar10() -> Path:
    return shared("cifar10")
