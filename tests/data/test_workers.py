"""Processes that decode: what they do when the signals of a terminal or a scheduler reach them, too."""

from __future__ import annotations

import io
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from convsmith.data import workers
from convsmith.data.config import DecodeRules


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to ignore")
def test_signals_to_all_processes_leave_those_that_decode_to_the_one_that_saves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: 1)
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(content, "PNG")
    rules = DecodeRules(working_size=4, channels=1)
    pool = workers.Workers(rules, (4, 4, 1))
    pool.start()
    assert np.array_equal(pool.decode([content.getvalue()])[0], np.full((4, 4, 1), 7))
    process = pool._idle.get()
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    pool._idle.put(process)
    assert np.array_equal(pool.decode([content.getvalue()])[0], np.full((4, 4, 1), 7))
