"""The process that runs wandb: `python -m convsmith.tracking.wandb_process`, started by `WandbTracker`.

It reads one JSON message a line from stdin: the opening, then rows of the history, then the summary. It writes reports
as JSON lines to stdout: `url`, `warning`, `failed`, `finished`. If stdin ends without a summary, the run has died, and
W&B's run is marked as failed.
"""

from __future__ import annotations

import base64
import io
import json
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

ANSWER_SECONDS = 5.0  # the time for the W&B server to respond at all
INIT_SECONDS = 15.0  # the time for it to accept the run before the run continues offline
EXIT_SECONDS = 3.0
AXES = {"step": ("step",), "epoch": ("train", "val")}  # x axes, with the groups of charts that run over them


def main() -> None:
    # wandb and its service inherit /dev/null, so that they can neither use the two pipes nor keep them open.
    messages, reports = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)

    def report(**fields: Any) -> None:
        print(json.dumps(fields), file=reports)

    try:
        track(map(json.loads, messages), report)
    except Exception as error:  # whatever wandb raises, the run gets one line about it
        report(failed=_line(error))
    # wandb's exit hooks end its service, and may wait for the network or hang.
    last_resort = threading.Timer(EXIT_SECONDS, os._exit, [1])
    last_resort.daemon = True
    last_resort.start()


def track(messages: Iterator[dict[str, Any]], report: Callable[..., None]) -> None:
    opening = next(messages)
    run = start(opening["mode"], opening["init"], report)
    report(url=run.url)
    # With these, each call to log writes a row at once, and rows that a resume repeats are put in their place.
    for axis, groups in AXES.items():
        run.define_metric(axis, hidden=True)
        for group in groups:
            run.define_metric(f"{group}/*", step_metric=axis)
    failed = True
    for message in messages:
        if "summary" in message:
            run.summary.update(message["summary"])
            failed = message["failed"]
        else:
            run.log(message["values"] | {name: _images(items) for name, items in message["pictures"].items()})
    run.finish(exit_code=int(failed))
    report(finished=True)


def start(mode: str, init: Mapping[str, Any], report: Callable[..., None]) -> Any:
    """The wandb run; an offline one where W&B cannot be reached."""
    import wandb

    settings: dict[str, Any] = {
        "init_timeout": INIT_SECONDS,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "disable_job_creation": True,
    }
    newer = {
        "x_stats_pid": os.getppid(),  # monitor the run's process, not this one
        "x_transaction_log_flush_interval": 2.0,  # seconds that `wandb leet` may lag behind a run
    }
    settings |= {name: value for name, value in newer.items() if name in getattr(wandb.Settings, "model_fields", ())}
    if mode == "auto":
        mode = automatic_mode()
    # "allow": the id may exist already, in W&B or in an earlier offline folder; W&B then joins the parts.
    arguments: dict[str, Any] = {**init, "resume": "allow", "save_code": False, "settings": settings}
    if mode != "offline":
        try:
            if mode == "online":
                _expect_answer(wandb.setup().settings.base_url)
            return wandb.init(**arguments | {"mode": mode})
        except Exception as error:  # without a network, with a bad key or if the server is down, go offline
            report(warning=f"W&B cannot be reached, so this run is tracked offline: {_line(error)}")
            wandb.teardown()  # otherwise its service would still hold the run's id
    return wandb.init(mode="offline", **arguments)


def automatic_mode() -> str:
    """W&B's own mode setting (`WANDB_MODE`, `wandb offline`) if it is not online, else offline unless logged in.

    Call this only in a process without a terminal; otherwise wandb would ask for a key.
    """
    import wandb

    settings: Any = wandb.setup().settings
    if settings.mode not in (None, "online", "run"):
        return str(settings.mode)
    try:
        wandb.login(verify=False)
    except wandb.errors.UsageError:  # there is no key, and nobody can be asked for one
        return "offline"
    except Exception:  # the key is malformed, which `start` will report
        return "online"
    return "online"


def _expect_answer(url: str) -> None:
    """Raise `OSError` if nothing responds; wandb itself would try for much longer and leave a folder behind."""
    try:
        urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # wandb brings its own certificates
            raise


def _images(items: list[tuple[str, str | None]]) -> list[Any]:
    import wandb
    from PIL import Image

    return [wandb.Image(Image.open(io.BytesIO(base64.b64decode(png))), caption=caption) for png, caption in items]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


if __name__ == "__main__":
    main()
