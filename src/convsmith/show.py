"""Which listener the `show` of a public function asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from convsmith.display import Display
from convsmith.events import Listener, nobody
from convsmith.study_display import StudyDisplay


@contextlib.contextmanager
def listening(show: bool | Listener, study: bool = False) -> Iterator[Listener]:
    """True is a display (of a `study`, whose events are its own), false shows nothing, a function is taken as it is."""
    if not isinstance(show, bool):
        yield show
    elif not show:
        yield nobody
    else:
        with StudyDisplay() if study else Display() as display:
            yield display
