"""No class and no split is misread."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from convsmith.data.config import DataConfig
from convsmith.data.sources import open_source
from convsmith.errors import UserError
from data.layouts import LAYOUTS, Layout, build, expanded


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_is_read_or_refused(layout: Layout, tmp_path: Path) -> None:
    build(layout, tmp_path / "data")
    named = tuple(str(tmp_path / "data" / name) for name in layout.source)
    config = DataConfig(source=named, **layout.settings)
    if isinstance(layout.reads, str):
        with pytest.raises(UserError) as caught:
            open_source(config)
        assert layout.reads in str(caught.value)
        return
    source = open_source(config)
    found = Counter(zip(source.given.tolist(), (source.classes[label] for label in source.labels), strict=True))
    expected = {(split, name): count for split, counts in layout.reads.items() for name, count in counts.items()}
    assert found == expected
    assert sum(map(len, source.unused.values())) == layout.unused
    for row in (0, len(source) - 1):
        record = source.read(row)
        assert not isinstance(record, Path) or record.exists()


def test_layouts_are_many_and_patterns_are_expanded() -> None:
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS) >= 60
    assert list(expanded("{a,b}/*2.png")) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert list(expanded("x{1,}.y")) == ["x1.y", "x.y"]
