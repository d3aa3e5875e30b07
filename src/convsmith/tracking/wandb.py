"""The tracker for Weights & Biases: our side of the pipe to its process. Imports no wandb.

wandb runs in a separate process (`wandb_process`), which a thread feeds through a pipe. Whatever wandb does
(hang without a network, die, prompt, print, patch `sys.exit`, draw random numbers) cannot affect the run, and a
run that is killed leaves a W&B run that is complete up to that point.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import queue
import secrets
import shlex
import subprocess
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convsmith.processes import python, python_module
from convsmith.tracking.config import TrackConfig
from convsmith.tracking.null import NullTracker

CLOSE_SECONDS = 30.0  # the time that W&B has at the end of a run to send the remaining data
PENDING = 10_000  # messages that may wait for a slow W&B


def open_tracker(
    config: TrackConfig,
    run_dir: Path,
    name: str,
    run_config: Mapping[str, Any],
    resume_id: str | None,
    warn: Callable[[str], None],
) -> WandbTracker | NullTracker:
    """The tracker of the run `name`, with its files in ``<run_dir>/wandb``. Never waits for W&B.

    `run_config` is the configuration that W&B shows; `resume_id` is the `run_id` of the tracker whose run is
    resumed. `warn` is called with one line if something goes wrong, in the thread that calls the tracker.
    """
    if _is_off(config):
        return NullTracker(resume_id)
    run_id = resume_id or secrets.token_hex(4)
    init = {
        "project": config.project,
        "group": config.group,
        "name": name,
        "id": run_id,
        "dir": str(run_dir.absolute()),  # in which wandb makes its folder
        "config": dict(run_config),
    }
    try:
        return WandbTracker(config.wandb, init, warn)
    except OSError as error:
        warn(f"W&B is off for this run, because its process did not start ({error})")
        return NullTracker(run_id)


def watched(config: TrackConfig, run_dir: Path) -> str | None:
    """The command that shows a run as it goes, from W&B's files in the run directory; None where it has none.

    It is known before W&B has started; whether a run goes online may be known only later.
    """
    return None if config.wandb == "online" or _is_off(config) else watching(_folder(run_dir.absolute()))


def _is_off(config: TrackConfig) -> bool:
    return config.wandb == "off" or (config.wandb == "auto" and os.environ.get("WANDB_MODE") == "disabled")


def _folder(run_dir: Path) -> Path:
    return run_dir / "wandb"


class WandbTracker:
    """Sends a run's numbers and pictures to the W&B process.

    `run_id` identifies the W&B run, for `open_tracker` when the run is resumed. `where` is the URL of the run or a
    command that shows it; it is None until W&B has started.
    """

    def __init__(self, mode: str, init: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        self.run_id: str = init["id"]
        self.where: str | None = None
        self._warn = warn
        self._folder = _folder(Path(init["dir"]))
        self._process = subprocess.Popen(
            python_module("convsmith.tracking.wandb_process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"WANDB_ERROR_REPORTING": "false"}  # its errors go to nobody, unless the user has set this to true
            | os.environ
            | {"WANDB_PROGRAM": "convsmith", "WANDB_SILENT": "true", "PYTHONSAFEPATH": "1"},
            start_new_session=True,  # Ctrl-C must reach only the run, which then reports how it ended
        )
        self._pending: queue.Queue[bytes | None] = queue.Queue(PENDING)
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lost = False
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()
        self._send({"mode": mode, "init": init})

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Log numbers, texts, matplotlib figures, or lists of (image uint8 [H, W, 3] or [H, W], caption).

        W&B has them as `grouped` says, and pictures, which are of val images, under ``val/``. `step` is the optimiser
        step: the x axis of what is logged within an epoch. That of all else is the epoch. Never waits.
        """
        if not self._lost:
            try:
                pictures = {f"val/{name}": _pictures(value) for name, value in values.items() if _drawn(value)}
                plain = {grouped(name): value for name, value in values.items() if not _drawn(value)}
                self._send({"values": plain | {"step": step}, "pictures": pictures})
            except Exception as error:  # a tracker may lose values, but must never stop a run
                self._warnings.put(f"W&B did not receive {', '.join(values)} of step {step}: {error}")
        self._pass_on_warnings()

    def close(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """End the W&B run with `summary`. Waits up to `CLOSE_SECONDS`, but not for a run that is lost already."""
        self._send({"summary": _flat(summary), "failed": failed})
        self._put(None)
        try:
            self._process.wait(0 if self._lost else CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._lose(f"it did not finish within {CLOSE_SECONDS:g} seconds")
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join()
        self._pass_on_warnings()

    def _send(self, message: Mapping[str, Any]) -> None:
        self._put(json.dumps(message, default=_plain, skipkeys=True).encode() + b"\n")

    def _put(self, line: bytes | None) -> None:
        try:
            self._pending.put_nowait(line)
        except queue.Full:
            self._lose("it does not keep up with the run")

    def _write(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # `_read` notices a broken pipe as well
            while (line := self._pending.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _read(self) -> None:
        assert self._process.stdout
        finished, reason = False, "its process died"
        with self._process.stdout as pipe:
            for line in pipe:
                report = json.loads(line)
                if "url" in report:
                    self.where = report["url"] or watching(self._folder)
                finished = report.get("finished", finished)
                reason = report.get("failed", reason)
                if "warning" in report:
                    self._warnings.put(report["warning"])
        if not finished:
            self._lose(reason)

    def _lose(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            self._warnings.put(f"W&B lost this run: {reason}. metrics.csv is complete; W&B's part is in {self._folder}")

    def _pass_on_warnings(self) -> None:
        while not self._warnings.empty():
            self._warn(self._warnings.get())


def grouped(name: str) -> str:
    """The name in W&B of a column of metrics.csv: ``train/loss``, ``val/accuracy``, ``train/learning_rate``.

    W&B shows a group of charts for what stands before a slash. `epoch` and `step` are axes.
    """
    if name in ("epoch", "step"):
        return name
    for group in ("val", "step", "train"):
        if name.startswith(f"{group}_"):
            return f"{group}/{name.removeprefix(f'{group}_')}"
    return f"train/{name.replace('train_', '')}"


def _flat(summary: Mapping[str, Any]) -> dict[str, Any]:
    """``{"val": {"accuracy": 0.9}}`` -> ``{"val/accuracy": 0.9}``: the kept epoch's instead of the last one's."""
    flat: dict[str, Any] = {}
    for name, value in summary.items():
        flat |= {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def _plain(value: Any) -> Any:
    return value.item() if getattr(value, "ndim", None) == 0 else str(value)  # a scalar of numpy or torch


def _drawn(value: Any) -> bool:
    return hasattr(value, "savefig") or (isinstance(value, list) and bool(value) and isinstance(value[0], tuple))


def _pictures(value: Any) -> list[tuple[str, str | None]]:
    """(PNG in base 64, caption) of a figure, or of each (image, caption)."""
    from PIL import Image

    pictures = []
    for drawing, caption in [(value, None)] if hasattr(value, "savefig") else value:
        buffer = io.BytesIO()
        if hasattr(drawing, "savefig"):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing")  # scripts that the font lacks
                drawing.savefig(buffer, format="png")
        else:
            Image.fromarray(np.squeeze(drawing)).save(buffer, "PNG")
        pictures.append((base64.b64encode(buffer.getvalue()).decode(), caption))
    return pictures


def login_state() -> str:
    """A description of what `track.wandb=auto` would do now, determined in a separate process for the reasons above."""
    code = "from convsmith.tracking.wandb_process import automatic_mode; print(automatic_mode())"
    try:
        done = subprocess.run(
            python(code),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "does not start"
    mode = done.stdout.split()[-1]
    return {"online": "logged in: runs go online", "offline": "runs stay offline, in the run directory"}.get(mode, mode)


def watching(folder: Path) -> str:
    """The command that shows an offline run, with the path from the working directory where it lies below it."""
    here = Path.cwd()
    return f"wandb leet {shlex.quote(str(folder.relative_to(here) if folder.is_relative_to(here) else folder))}"
