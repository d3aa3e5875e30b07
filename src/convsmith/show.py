"""The listener that the argument `show` of a public function selects. Emits no events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from convsmith.display import Display
from convsmith.events import Listener, nobody
from convsmith.launch import place
from convsmith.study_display import StudyDisplay

Show = bool | Listener  # of the public functions


@contextlib.contextmanager
def listening(show: Show, study: bool = False) -> Iterator[Listener]:
    """A display for True (with `study`, one for the events of studies), none for False; functions are used directly.

    Of several processes that train together, the first one shows.
    """
    if not isinstance(show, bool):
        yield show
    elif not show or place().rank:
        yield nobody
    else:
        with StudyDisplay() if study else Display() as display:
            yield display
