"""What a terminal shows while a study runs: its settings, a bar, one line per run. The verbs print the results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from convsmith import events
from convsmith.display import NO_BREAK, Display, duration, sealed
from convsmith.records import HEADLINES, METRICS, shown
from convsmith.terminal import plural

if TYPE_CHECKING:
    from rich.progress import Progress


class StudyDisplay:
    """A listener that shows a study's events on `display`; a context manager that removes its bar at the end."""

    def __init__(self, display: Display | None = None) -> None:
        self.display = display or Display()
        self._shares: list[float] = []
        self._bar: Progress | None = None
        self._began = 0.0

    def __enter__(self) -> StudyDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end_bar()
        self.display.clear()

    def __call__(self, event: object) -> None:
        if isinstance(event, events.JobsStarted):
            self._start_bar(event)
        elif isinstance(event, events.JobProgress):
            self._advance(event.index, event.share)
        elif isinstance(event, events.JobDone):
            self._advance(event.index, 1.0)
        elif isinstance(event, events.Counted):
            self.display(event)
        for line in lines(event):
            self.display.wrapped(line)

    def _start_bar(self, event: events.JobsStarted) -> None:
        self._end_bar()
        self._shares = [0.0] * (event.total - event.before)
        self._began = time.monotonic()
        if self.display.live and self._shares:
            from rich.progress import BarColumn, Progress, TextColumn

            text = TextColumn(f"{{task.fields[done]}} of {{task.total}} {event.what}{{task.fields[left]}}")
            self._bar = Progress(BarColumn(bar_width=40), text, console=self.display.console, transient=True)
            self._bar.add_task("", total=len(self._shares), done=0, left="")
            self._bar.start()

    def _advance(self, index: int, share: float) -> None:
        if self._bar is None:
            return
        self._shares[index] = share
        whole = sum(self._shares)
        done, left = self._shares.count(1.0), ""
        if whole:
            seconds = (time.monotonic() - self._began) * (len(self._shares) - whole) / whole
            left = f", about {duration(seconds)} left"
        self._bar.update(self._bar.task_ids[0], completed=whole, done=done, left=left)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def lines(event: object) -> Iterator[str]:
    """An event in words; nothing for those that only move the bar."""
    if isinstance(event, events.CrossvalStarted):
        yield from _crossval(event)
    elif isinstance(event, events.AblationStarted):
        yield from _ablation(event)
    elif isinstance(event, events.TuningStarted):
        yield from _tuning(event)
    elif isinstance(event, events.LrFindStarted):
        yield (
            f"range test of {event.model} on {event.source}, {event.optimizer}, batches of {event.batch_size}: "
            f"learning rate {event.low:g} to {event.high:g} in {event.steps:,} steps"
        )
    elif isinstance(event, events.Note):
        yield f"note    {event.text}"
    elif isinstance(event, events.ReportWritten):
        yield f"report  {event.path}"
    elif isinstance(event, events.JobsStarted) and event.before:
        what = "" if event.what == "runs" else f"{event.what} "
        yield f"{event.before} of {event.total} {what}were done before"
    elif isinstance(event, events.FeatureExtractionProgress):
        yield f"first   computing features of {event.total:,} images, which all runs with a frozen backbone share"
    elif isinstance(event, events.JobDone) and event.failed is not None:
        yield f"{event.name}  failed: {event.failed}"
    elif isinstance(event, events.JobDone) and event.record and "best_epoch" in event.record:
        yield _fold(event.name, event.record)
    elif isinstance(event, events.ArmGivenUp):
        yield f"{event.arm}: given up after {event.done} of {plural(event.runs, 'run')}, to keep the budget"
    elif isinstance(event, events.ArmStopped) and event.because in events.STOPPED:
        yield f"{event.arm}: stopped after {event.done} of {plural(event.runs, 'run')}: {events.STOPPED[event.because]}"
    elif isinstance(event, events.TrialDone):
        yield _trial(event)
    elif isinstance(event, events.RaceStarted):
        yield from _race(event)
    elif isinstance(event, events.CandidateDone):
        yield _candidate(event)
    elif isinstance(event, events.RaceWon):
        yield f"winner  {event.name} ({event.because}); it is trained on {event.images:,} images"


def _crossval(event: events.CrossvalStarted) -> Iterator[str]:
    yield f"study   {event.directory}"
    yield (
        f"data    {event.source}: {event.images:,} images in {event.runs} folds, each of {event.train:,} train, "
        f"{event.val:,} inner val, {event.held_out:,} held out; {sealed(event.sealed)}"
    )
    yield f"model   {event.model}; {plural(event.epochs, 'epoch')}, {plural(event.threads, 'thread')} a fold"
    yield f"needs   about {duration(event.seconds)} of training, {event.max_workers} at once"


def _ablation(event: events.AblationStarted) -> Iterator[str]:
    yield _study(event)
    yield (
        f"arms    {event.arms} with the base, {plural(event.runs, 'run')} each "
        f"({plural(event.folds, 'fold')}, {plural(event.repeats, 'repeat')}, {plural(event.seeds, 'seed')}); "
        f"{event.images:,} images, {sealed(event.sealed)}"
    )
    yield f"needs   about {duration(event.seconds)} of training, {event.max_workers} at once"
    if event.power is not None:
        yield f"power   {event.power}"
    if event.budget is not None:
        yield (
            f"budget  {plural(event.budget, 'minute')}: an arm stops as soon as its verdict is clear, or hardly to be "
            "had, and its time goes to the others. Error rates hold over all looks"
        )


def _tuning(event: events.TuningStarted) -> Iterator[str]:
    yield _study(event)
    yield f"data    {event.source}: {event.train:,} train, {event.val:,} val, {sealed(event.sealed)}"
    yield f"space   {', '.join(event.space)}; pruner {event.pruner}, seed {event.seed}"
    yield (
        f"trials  {event.runs} of up to {plural(event.epochs, 'epoch')}, {event.max_workers} at once; "
        f"threads per trial: {event.threads}"
    )
    if event.storage:
        yield f"storage {event.storage}, study '{event.name}'"
    yield f"needs   about {duration(event.seconds)} of training, if the base is like most trials"


def _race(event: events.RaceStarted) -> Iterator[str]:
    yield f"race    {event.directory}"
    how = (
        f"{event.folds} folds: the estimate is out of fold"
        if event.folds
        else f"of which {event.held_out:,} are set aside for the estimate"
    )
    yield f"data    {event.source}: {event.images:,} images, {how}; {sealed(event.sealed)}"
    for number, line in enumerate(event.lines):
        yield f"{'' if number else 'check':8}{line}"
    yield (
        f"budget  {plural(event.minutes, 'minute')}"
        + (f", of which {duration(event.spent)} are spent" if event.spent else "")
        + f"; {plural(event.backbones, 'pretrained backbone')} at hand"
    )


def _candidate(event: events.CandidateDone) -> str:
    entry = event.entry
    clock = f"{duration(event.spent)} of {duration(event.budget)}"
    if entry["state"] == "skipped":
        return f"{entry['name']}  left out: {entry['reason']}"
    ended = f"  stopped: {entry['reason']}" if entry["state"] == "stopped" else ""
    parts = [f"inner accuracy {event.means['accuracy']:.1%}", f"loss {event.means['loss']:.4f}", f"({clock})"]
    return "  ".join([entry["name"], *map(unbroken, parts)]) + ended


def _study(event: events.StudyStarted) -> str:
    return f"study   {event.directory}" + (f": {event.question}" if event.question else "")


def _fold(name: str, record: Mapping[str, Any]) -> str:
    chosen = [f"{section}.{key} {value}" for section, layer in record["chosen"].items() for key, value in layer.items()]
    parts = [
        *(f"{METRICS[metric].label} {shown(metric, record[metric])}" for metric in HEADLINES),
        f"best epoch {record['best_epoch']} of {record['epochs']}",
        duration(record["seconds"]),
        *(["chosen", *chosen] if chosen else []),
    ]
    return "  ".join([name, *map(unbroken, parts)])


def _trial(event: events.TrialDone) -> str:
    record, best = event.record, event.best
    tried = settings(record["values"])
    if record["state"] == "failed":
        return f"trial {record['number']:<3} failed  {tried}: {record['message']}"
    so_far = f"   best {best['value']:.4f} (trial {best['number']})" if best else ""
    ended = f"  {record['message'].partition(':')[0]}" if record["state"] == "pruned" else ""
    spent = duration(record["seconds"])
    return f"trial {record['number']:<3} {event.metric} {record['value']:.4f}  {tried}  {spent}{ended}{so_far}"


def settings(values: Mapping[str, Any]) -> str:
    """``optim.lr 0.0032  model.activation gelu``; no line is broken between a key and its value."""
    return "  ".join(unbroken(f"{key} {word(value)}") for key, value in values.items())


def unbroken(text: str) -> str:
    """The words of `text` with no-break spaces between them, which `Display.wrapped` shows as blanks."""
    return text.replace(" ", NO_BREAK)


def word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
