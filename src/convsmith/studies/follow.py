"""Running a study's fold jobs in sight of a person: a bar in a terminal, a line a finished fold elsewhere."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from convsmith.display import Display, duration
from convsmith.records import HEADLINES, METRICS, shown
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies import study
from convsmith.studies.fold_job import FoldJob


@dataclass
class Ran:
    """What kept jobs of a study from being done; the others have left their records in their directories."""

    failed: dict[str, str] = field(default_factory=dict)  # the job's name -> why
    stopped: signal.Signals | None = None


def follow(
    run: RunDir, jobs: Sequence[FoldJob], at_once: int, backend: str, display: Display, ran: Ran | None = None
) -> Ran:
    """Run the jobs that are not done. `ran` is how jobs before these ended, to be added to."""
    ran = ran or Ran()
    waiting = [job for job in jobs if not job.done]
    if len(waiting) < len(jobs):
        display.line(f"{len(jobs) - len(waiting)} of {len(jobs)} were done before")
    if not waiting:
        return ran
    runner = study.backend(backend)
    featured = False
    with Interrupts() as interrupts, progress_bar(display, len(waiting), "runs") as advance:
        for answer in runner(waiting, at_once, run.path / "workers.log", interrupts):
            job = waiting[answer.index]
            if answer.progress:
                if "epoch" in answer.progress:
                    advance(answer.index, answer.progress["epoch"] / answer.progress["epochs"])
                elif not featured:
                    featured = True
                    count = answer.progress["features"]
                    display.line(f"first   features of {count:,} images, which all runs with a frozen backbone share")
                continue
            advance(answer.index, 1.0)
            if answer.record:
                display.line(_line(job.name, answer.record))
                run.log(_line(job.name, answer.record))
            else:
                ran.failed[job.name] = answer.failed or ""
                display.line(f"{job.name}  failed: {answer.failed}")
                run.log(f"{job.name} failed: {answer.failed}")
        ran.stopped = interrupts.received
    return ran


def _line(name: str, record: dict[str, Any]) -> str:
    chosen = "  ".join(
        f"{section}.{key} {value}" for section, layer in record["chosen"].items() for key, value in layer.items()
    )
    return (
        f"{name}  {'  '.join(f'{METRICS[metric].label} {shown(metric, record[metric])}' for metric in HEADLINES)}  "
        f"best epoch {record['best_epoch']} of {record['epochs']}  {duration(record['seconds'])}"
        f"{'  chosen ' + chosen if chosen else ''}"
    )


@contextlib.contextmanager
def progress_bar(display: Display, total: int, what: str) -> Iterator[Callable[[int, float], None]]:
    """A function of (job's place, share done) that moves the bar of `total` jobs, where there is a terminal."""
    shares = [0.0] * total
    if not display.live:
        yield shares.__setitem__
        return
    text = TextColumn(f"{{task.fields[done]}} of {{task.total}} {what}, {{task.fields[left]}}")
    began = time.monotonic()
    with Progress(BarColumn(bar_width=40), text, console=display.console, transient=True) as progress:
        bar = progress.add_task("", total=total, done=0, left="")

        def advance(at: int, share: float) -> None:
            shares[at] = share
            whole = sum(shares)
            left = (time.monotonic() - began) * (total - whole) / whole if whole else 0.0
            progress.update(bar, completed=whole, done=shares.count(1.0), left=f"about {duration(left)} left")

        yield advance
