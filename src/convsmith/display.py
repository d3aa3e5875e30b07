"""What a terminal or a notebook shows of events and results: bars, lines per epoch, tables. It controls nothing."""

from __future__ import annotations

import atexit
import importlib.util
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich import console as rich_console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from convsmith.contracts import size_text
from convsmith.errors import UserError, command
from convsmith.events import (
    Counted,
    Doing,
    Ended,
    EpochEnd,
    FeatureExtractionProgress,
    Finished,
    Interrupted,
    Note,
    ReportWritten,
    Serving,
    StepProgress,
    TrainingStarted,
    Unfroze,
)
from convsmith.nets.shapes import LayerRow, totals
from convsmith.prediction.metrics import accuracy_interval
from convsmith.records import METRICS, shown, worth_showing
from convsmith.rundir import RunDir, next_steps, out_of_fold
from convsmith.terminal import lines_of, plural, spelled, visible, wrap

# 73 columns, and 5 more for `best`: a terminal has 80.
COLUMNS = (
    f"{'epoch':>7} {'train loss':>10} {'acc':>6}  {'val loss':>8} {'acc':>6} {'F1':>5}  "
    f"{'lr':>7} {'img/s':>7} {'time':>7}"
)
INDENT = 8  # of the lines before the first step
MOST_CLASSES = 30
FEW_CLASSES = 6  # in a sentence
ON_THE_RIGHT = ("output", "parameters", "MACs", "field", "val", "test", "size")  # columns of numbers and shapes
NO_BREAK = "\u00a0"  # between words of ours that stay in one line
LONGEST_LIST = 80  # columns of a list of metrics, where the terminal or file is wider


class Console(rich_console.Console):
    """A console on which all text is visible: rich's own styles and cursor moves pass, those of a name do not.

    Strings are no markup, since they may be names.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "soft_wrap": True, "markup": False, "emoji": False, **options})

    def render(
        self, renderable: rich_console.RenderableType, options: rich_console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=lines_of(segment.text))


class _TimeLeft(TimeRemainingColumn):
    """The time that is left, and nothing while it is not known."""

    def render(self, task: Task) -> Text:
        return Text() if task.time_remaining is None else super().render(task)


class Display:
    """A listener that shows events on a console (the terminal's or a notebook's, as rich finds it).

    As a context manager it removes the bar of interrupted work.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        if not self.live:  # a file or a pipe has no edge to wrap at
            self.console.width = max(self.console.width, 160)
        self._bar: Progress | None = None
        self._waits = False  # whether the bar is that of work which the next event ends
        self._training: TrainingStarted | None = None
        self._lasting: list[str] = []  # notes that bear on the result
        atexit.register(self.clear)  # a bar hides the cursor, which must come back however the process ends

    @classmethod
    def of_errors(cls) -> Display:
        """A display on stderr, for what must not come between results on stdout."""
        return cls(Console(stderr=True))

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def __call__(self, event: object) -> None:
        """Show one event; unknown events are ignored."""
        if self._waits:
            self.clear()
        match event:
            case Doing():
                self._doing(event)
            case Counted():
                self.counted(event)
            case Note():
                self.wrapped(event.text)
                if event.bears_on_result:
                    self._lasting.append(event.text)
            case ReportWritten():
                self.labelled("report", str(event.path))
            case Serving():
                self._serving(event)
            case TrainingStarted():
                self._started(event)
            case StepProgress():
                self._step(event)
            case EpochEnd():
                self._epoch(event)
            case FeatureExtractionProgress():
                self._features(event)
            case Unfroze():
                self.line(unfroze_line(event))
            case Interrupted():
                self.clear()
            case Finished():
                self.clear()
                self._finished(event)
            case Ended():
                self._ended()

    @property
    def live(self) -> bool:
        widgets = self.console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        return self.console.is_terminal or widgets  # without widgets, rich warns at each step of a bar in a notebook

    def line(self, text: str = "") -> None:
        """One line, even if a name in it has line breaks, which are shown escaped; a terminal gets it wrapped."""
        self.console.print(Text("\n".join(self._lines(text, 0))))

    def counted(self, event: Counted) -> None:
        """A bar, or one line at the end where there is no terminal."""
        if not self.live:
            if event.done == event.total:
                self.line(f"{event.what} {event.total:,} images: done")
            return
        if self._bar is None:
            text = TextColumn("{task.completed:,} of {task.total:,}")
            self._bar = Progress(
                TextColumn(event.what),
                BarColumn(),
                text,
                _TimeLeft(),
                console=self.console,
                redirect_stdout=not self.console.stderr,  # what goes to stdout may go to a file
            )
            self._bar.add_task("", total=event.total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=event.done)
        if event.done == event.total:
            self._bar.stop()
            self._bar = None

    def _doing(self, event: Doing) -> None:
        """A sign of life on a terminal, and nothing elsewhere."""
        self.clear()
        if self.live:
            self._bar = Progress(SpinnerColumn("line"), TextColumn(f"{event.what} ..."), console=self.console)
            self._bar.add_task("", total=None)
            self._bar.start()
            self._waits = True

    def clear(self) -> None:
        """Remove the bar of work that has ended or was interrupted."""
        self._waits = False
        if self._bar is not None:
            self._bar.live.transient = True
            self._bar.stop()
            self._bar = None

    def notes(self, notes: Sequence[str]) -> None:
        for number, note in enumerate(notes):
            self.labelled("" if number else "note", note)

    def labelled(self, label: str, text: str) -> None:
        """A line with a label; on a terminal its words are wrapped below each other."""
        self.wrapped(f"{label:{INDENT}}{text}")

    def wrapped(self, line: str, indent: int = INDENT) -> None:
        """A line of prose; on a terminal it is wrapped between words, and what follows is indented.

        A no-break space keeps two words on one line, and is shown as a blank.
        """
        self.console.print(Text("\n".join(self._lines(line, indent)).replace(NO_BREAK, " ")))

    def _lines(self, text: str, indent: int) -> list[str]:
        return wrap(visible(text), self.console.width, indent) if self.live else [visible(text)]

    def written(self, *files: object) -> None:
        """The files that a command has written."""
        self.wrapped(f"written: {', '.join(map(str, files))}", indent=len("written: "))

    def next(self, *steps: str, label: str = "next:") -> None:
        """What can be done next: commands, each in a line of its own."""
        for number, step in enumerate(steps):
            typed, _, why = f"{'' if number else label:{len(label)}} {step}".partition("   (")
            note = f"   ({why}" if why else ""
            fits = not self.live or len(typed + note) <= self.console.width
            self.console.print(cell(typed + note if fits else typed))
            if note and not fits:
                self.wrapped(f"{'':{len(label)}} {note.strip()}", indent=len(label) + 1)

    def prose(self, text: str) -> None:
        """Paragraphs of our own, one a line, each wrapped on a terminal; names in them must be visible."""
        for paragraph in text.strip().split("\n"):
            self.wrapped(paragraph, indent=0)

    def table(self, columns: Mapping[str, Sequence[str]], below: Collection[str]) -> None:
        """Columns by heading. In a narrow terminal those of `below` get their own table: nothing is cut."""
        whole = table_of(columns)
        if self.natural_width(whole) <= self.console.width:
            self.console.print(whole)
            return
        first = next(iter(columns))
        self.console.print(table_of({name: cells for name, cells in columns.items() if name not in below}))
        self.line()
        self.console.print(table_of({name: columns[name] for name in (first, *below)}))

    def _serving(self, event: Serving) -> None:
        if not event.local:
            self.line(
                f"warning: anyone who reaches this machine on port {event.port} can use this page; it has no password"
            )
        self.line(f"page     {event.url}")
        self.line(f"programs curl --form image=@FILE {event.url}predict")
        self.line("Press Ctrl-C to stop. Images that are sent are not kept.")

    def _started(self, event: TrainingStarted) -> None:
        """Data, model, machine, and the time and memory that the training will need, before its first step."""
        self._training = event
        size = f"{size_text(event.image_size)} x {event.channels}"
        if event.working_size != event.image_size:
            size += f" from {size_text(event.working_size)} in the cache"
        self.labelled("run", str(event.directory))
        self.labelled(
            "data",
            f"{event.source}: {event.train:,} train, {event.val:,} val, {sealed(event.test)}; "
            f"{len(event.classes):,} classes; {size}, resize {event.resize}",
        )
        self.labelled("classes", first_of(event.classes, 80 - INDENT))
        if event.unused:
            self.labelled("unused", unused_line(event.unused))
        self.labelled(
            "model", f"{event.model}: {event.parameters:,} parameters, {event.macs / 1e6:,.1f} M MACs an image"
        )
        machine = f"{event.device}, {plural(event.threads, 'thread')}, {event.layout} layout, {event.precision}"
        self.labelled("machine", f"{machine}, {event.feed}" if event.feed else machine)
        estimate = f"about {event.memory / 1e6:,.0f} MB for weights, optimiser and activations"
        if event.seconds_per_epoch:
            epoch, count = event.seconds_per_epoch, event.image_epochs
            times = f"about {duration(epoch)} an epoch, {duration(epoch * count)} for {count}"
            if count < event.epochs:
                few = f"very little for {plural(event.epochs - count, 'epoch')} on features that are computed once"
                times = f"{times} that train stages; {few}" if count else few
            estimate = f"{times}; {estimate}"
        self.labelled("needs", estimate)
        self.notes(event.notes)
        if event.watch:
            self.labelled("watch", event.watch)
        self.console.print(Text(COLUMNS, style="bold" if self.live else ""))
        if self.live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}"),
                _TimeLeft(compact=True),
                console=self.console,
                transient=True,
            )
            self._bar.add_task("", total=event.steps * event.epochs, completed=event.step, numbers="")
            self._bar.start()

    def _step(self, event: StepProgress) -> None:
        if self._bar is not None and self._training is not None:
            self._bar.update(
                self._bar.task_ids[0],
                completed=event.step,
                description=f"epoch {event.epoch}/{self._training.epochs}",
                numbers=running_line(event.loss, event.accuracy, event.images_per_second),
            )

    def _epoch(self, event: EpochEnd) -> None:
        assert self._training is not None
        if self._bar is not None:  # an epoch of few steps may have reported none of them
            self._bar.update(
                self._bar.task_ids[0],
                completed=event.row["epoch"] * self._training.steps,
                description=f"epoch {event.row['epoch']}/{self._training.epochs}",
                numbers=running_line(
                    *(event.row[name] for name in ("train_loss", "train_accuracy", "images_per_second"))
                ),
            )
        dim = self.live and not event.best
        self.console.print(Text(epoch_line(event, self._training.epochs), style="dim" if dim else ""))

    def _features(self, event: FeatureExtractionProgress) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=f"features of {event.done:,}/{event.total:,} images")
        elif event.done == event.total:
            self.line(f"features of {event.total:,} images: done")

    def _finished(self, end: Finished) -> None:
        assert self._training is not None
        run, summary, val = RunDir(self._training.directory), end.summary, end.evaluation
        if val is None:
            scores = ["trained without val images: no scores"]
            kept, written, figures = "last", [run.metrics.name], "figures/curves.png"
        else:
            low, high = accuracy_interval(val)
            scores = [
                f"val accuracy {val['accuracy']:.2%}  (95% interval {low:.2%} to {high:.2%}, {val['n']:,} images)",
                *_listed(
                    {name: value for name, value in worth_showing(val).items() if name != "accuracy"},
                    min(self.console.width, LONGEST_LIST) - 4,  # the edges of the panel
                ),
            ]
            kept, figures = self._training.keep, "figures/curves.png, figures/confusion.png"
            written = [run.metrics.name, run.evaluation("val").name, run.predictions("val").name]
        lines = [
            *scores,
            f"{kept} epoch {summary['best_epoch']} of {summary['epochs']} ({summary['stopped_because']}), "
            f"{duration(summary['seconds'])} of training, {summary['images_per_second']:,.0f} images/s",
        ]
        self.console.print(
            Panel(Text("\n".join(map(visible, lines))), title=cell(summary["name"]), expand=False), soft_wrap=False
        )
        self.labelled("written", f"{run.path}/")
        self.labelled("", f"  model/  the {kept} weights, with their preprocessing")
        self.labelled("", f"  {', '.join(written)}")
        self.labelled("", f"  {figures}")
        if end.tracked and end.tracked != self._training.watch:
            self.labelled("W&B", end.tracked)

    def _ended(self) -> None:
        """How to go on, after all that a training has written."""
        assert self._training is not None
        for text in self._lasting:
            self.wrapped(f"note: {text}")
        self._lasting.clear()
        label, steps = next_steps(RunDir(self._training.directory), self._training.is_own, self._training.test > 0)
        self.next(*steps, label=label)

    def evaluated(self, run: RunDir, split: str, record: dict[str, Any]) -> None:
        """The record of evaluation-<split>.json, or of other data than the run's."""
        low, high = accuracy_interval(record)
        if data := record.get("data"):
            part = f", its {data['split']} split" if data["split"] else ""
            self.line(f"{data['source']}{part}: {record['n']:,} images, by {run.path}")
            if skipped := data.get("skipped"):
                self.line(f"{plural(skipped, 'file')} that could not be decoded left out")
            self._absent(record)
            split = data["name"]
        else:
            self.line(f"{split} split of {run.path}: {record['n']:,} images")
        self.line(f"accuracy  {record['accuracy']:.2%}  (95% interval {low:.2%} to {high:.2%})")
        if split == "val" and not data:
            self._chosen_by(run)
        averaged = [name for name, metric in METRICS.items() if metric.averages]
        plain = worth_showing(record)
        rest = {name: plain[name] for name in plain if name not in ("accuracy", *averaged)}
        for line in _listed(rest, min(self.console.width, LONGEST_LIST)):
            self.line(line)
        headings = [METRICS[name].label for name in averaged]
        averages = Table("average", *headings, box=None, pad_edge=False)
        for average in ("macro", "micro", "weighted"):
            averages.add_row(average, *(shown(name, record[name][average]) for name in averaged))
        self.console.print(averages)
        worst = sorted(record["per_class"].items(), key=lambda item: item[1]["f1"])
        table = Table("class", *headings, "images", box=None, pad_edge=False)
        for name, scores in record["per_class"].items() if len(worst) <= MOST_CLASSES else worst[:MOST_CLASSES]:
            table.add_row(cell(name), *(shown(key, scores[key]) for key in averaged), f"{scores['support']:,}")
        self.line()
        if len(worst) > MOST_CLASSES:
            self.line(f"the {MOST_CLASSES} classes with the lowest F1 of {len(worst)}:")
        self.console.print(table)
        if len(worst) <= 12:
            self._confusion(record)
        self.line()
        self.written(run.evaluation(split), run.predictions(split))
        if data:
            self.line(f"         {run.confusion(split)}")
        if split == "test":
            self.line(f"         {run.test_access} records that the test split was opened")
        self.next(f"{command('predict', run.path)} IMAGE...")

    def _chosen_by(self, run: RunDir) -> None:
        """A note where the val images took part in the choice of a race's winner."""
        with suppress(UserError):  # a race's file that is damaged does not make the evaluation of its run wrong
            if estimate := out_of_fold(run):
                self.wrapped(
                    "note: these images took part in the choice of the race's winner, so the scores are too good. The "
                    f"estimate: {estimate['sentence']}",
                    indent=6,
                )

    def _absent(self, record: dict[str, Any]) -> None:
        """A note on classes without images, which count as zero in macro averages."""
        if absent := [name for name, scores in record["per_class"].items() if not scores["support"]]:
            names = ", ".join(absent[:FEW_CLASSES]) + (", ..." if len(absent) > FEW_CLASSES else "")
            self.wrapped(
                f"note: there are no images of {len(absent)} of the {len(record['classes'])} classes ({names}): in "
                "macro averages each counts as 0; balanced accuracy leaves them out",
                indent=6,
            )

    def layers(self, rows: Sequence[LayerRow], title: str) -> None:
        """The network layer by layer, with the size equation of each axis that has one."""
        columns = {
            "layer": [row.name for row in rows],
            "kind": [row.kind for row in rows],
            "K S P": [
                " ".join(_square(pair) for pair in (row.kernel, row.stride, row.padding) if pair) for row in rows
            ],
            "size: (T - K + 2P)/S + 1": [row.equation for row in rows],
            "output": [" x ".join(map(str, row.output_shape)) for row in rows],
            "parameters": [f"{row.parameters:,}" if row.parameters else "" for row in rows],
            "MACs": [f"{row.macs:,}" if row.macs else "" for row in rows],
            "field": [str(row.receptive_field or "") for row in rows],
        }
        self.line(title)
        self.table(columns, below=("kind", "size: (T - K + 2P)/S + 1"))
        whole = totals(rows)
        self.line()
        self.line(f"{whole.parameters:,} parameters, {whole.macs:,} MACs for one image")
        self.wrapped(
            "K kernel, S stride, P padding, T input size; field: receptive field in pixels; MACs: multiply-accumulates",
            indent=0,
        )
        lost = [row for row in rows if row.discarded]
        for row in lost:
            pixels = plural(row.discarded, "pixel")
            self.line(f"note: {row.name} discards {pixels} at the edge, since its stride does not divide the size")

    def natural_width(self, table: Table) -> int:
        """The columns that a table takes where there is room."""
        return self.console.measure(table, options=self.console.options.update(width=10_000)).maximum

    def _confusion(self, record: dict[str, Any]) -> None:
        names = record["classes"]
        table = Table("true \\ predicted", *(visible(name[:8]) for name in names), box=None, pad_edge=False)
        for name, row in zip(names, record["confusion_matrix"]["counts"], strict=True):
            table.add_row(cell(name), *(Text(f"{count:,}" if count else "·", justify="right") for count in row))
        self.line()
        self.console.print(table)

    def predictions(self, ids: Iterable[str], classes: Sequence[str], top_k: int) -> PredictionTable:
        """A table for rows of predictions that come one after another."""
        return PredictionTable(self, ids, classes, top_k)


class PredictionTable:
    """Shows rows of predictions as they come, under one header, in columns as wide as `ids` and `classes` need.

    On a terminal that is too narrow for that, an image's name stands above its prediction: no word is broken.
    """

    def __init__(self, display: Display, ids: Iterable[str], classes: Sequence[str], top_k: int) -> None:
        self._display, self._top_k = display, top_k
        lengths = [cell(name).cell_len for name in classes]
        self._widths = [
            max(lengths, default=0) for lengths in ([5, *(cell(name).cell_len for name in ids)], [9, *lengths])
        ]
        most = sum(length + len("  100.0% ") for length in sorted(lengths)[-top_k:])
        self._is_narrow = display.live and sum(self._widths) + 4 + most > display.console.width
        self._has_header = False

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self._has_header:
            self._line("image", "predicted", "probabilities")
            self._has_header = True
        for row in rows:
            if row["error"] is not None:
                self._line(row["id"], "", f"cannot be read: {row['error']}")
                continue
            found = sorted(((value, key[2:]) for key, value in row.items() if key.startswith("p_")), reverse=True)
            listed = "  ".join(f"{name}{NO_BREAK}{value:.1%}" for value, name in found[: self._top_k])
            self._line(row["id"], row["predicted"], listed)

    def _line(self, name: str, predicted: str, listed: str) -> None:
        first, second = (
            text + " " * (width - cell(text).cell_len)
            for text, width in zip((name, predicted), self._widths, strict=True)
        )
        if not self._is_narrow:
            self._display.console.print(cell(f"{visible(first)}  {visible(second)}  {listed}".replace(NO_BREAK, " ")))
            return
        self._display.console.print(cell(name))
        self._display.wrapped(f"  {visible(second)}  {listed}" if predicted else f"  {listed}", indent=4)

    def counts(self, counts: Mapping[str | None, int]) -> None:
        """How often each answer was given, the most frequent first; None stands for images that cannot be read."""
        most = sorted(counts.items(), key=lambda item: -item[1])
        words = [f"{count:,} {'cannot be read' if name is None else name}" for name, count in most[:MOST_CLASSES]]
        self._display.line()
        self._display.wrapped(f"{sum(counts.values()):,} images: {', '.join(words)}", indent=0)


def cell(text: str) -> Text:
    """Text in one line, as wide as it will be shown; for what may contain names."""
    return Text(visible(text))


def folded(text: str, width: int) -> list[str]:
    """The lines of visible text in `width` columns, broken between words, and within one that is wider than that."""
    found = Text(text).wrap(Console(width=width), width, overflow="fold")
    return [line.plain.rstrip() for line in found] or [""]


def table_of(columns: Mapping[str, Sequence[str]]) -> Table:
    """A table of columns by heading; numbers and shapes are right-aligned."""
    table = Table(box=None, pad_edge=False)
    for heading in columns:
        table.add_column(cell(heading), justify="right" if heading in ON_THE_RIGHT else "left", overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(cell, cells))
    return table


def first_of(classes: Sequence[str], width: int) -> str:
    """The first classes, as many as fit into a line of `width`, and how many more there are."""
    names = [spelled(name) for name in classes]
    count = min(len(names), width // 2)
    while len(visible(line := _and_more(names, count))) > width and count > 1:
        count -= 1
    return line


def _and_more(names: Sequence[str], count: int) -> str:
    left = len(names) - count
    return ", ".join(names[:count]) + (f" and {left:,} more" if left else "")


def unused_line(unused: Mapping[str, int]) -> str:
    """How many files are not used, and why: ``3 files: 2 hidden, 1 outside the class folders``."""
    reasons = ", ".join(f"{count:,}{NO_BREAK}{reason}" for reason, count in unused.items())
    return f"{plural(sum(unused.values()), 'file')}: {reasons}"


def running_line(loss: float, accuracy: float, rate: float) -> str:
    return f"loss {loss:.4f}  acc {accuracy:.1%}  {rate:,.0f} img/s"


def epoch_line(end: EpochEnd, epochs: int) -> str:
    row, val, mark = end.row, " " * 21, ""  # what a row without val images has
    if "val_loss" in row:
        val = f"{row['val_loss']:>8.4f} {row['val_accuracy']:>6.1%} {row['val_f1']:>5.3f}"
        mark = " best" if end.best else ""
    return (
        f"{row['epoch']:>3}/{epochs:<3} {row['train_loss']:>10.4f} {row['train_accuracy']:>6.1%}  {val}  "
        f"{row['learning_rate']:>7.2g} {row['images_per_second']:>7,.0f} {clock(row['seconds']):>7}{mark}"
    )


def _listed(values: Mapping[str, float], width: int) -> list[str]:
    """Metrics with their values, as many to a line as fit; a name is never parted from its value."""
    lines: list[str] = []
    for name, value in values.items():
        word = f"{METRICS[name].label} {shown(name, value)}"
        if lines and len(lines[-1]) + 3 + len(word) <= width:
            lines[-1] += f"   {word}"
        else:
            lines.append(word)
    return lines


def unfroze_line(event: Unfroze) -> str:
    return (
        f"{'':7} from epoch {event.epoch + 1} on, {', '.join(event.stages)} train as well: "
        f"{event.parameters:,} parameters"
    )


def _square(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def clock(seconds: float) -> str:
    """``8.3 s``, ``99 s``, ``1:42``, ``1:02:05``: for a column."""
    if seconds < 99.5:
        return duration(seconds)
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def sealed(images: int) -> str:
    """The test split in words: ``359 test (sealed)``, or that there is none."""
    return f"{images:,} test (sealed)" if images else "no test split"


def duration(seconds: float) -> str:
    """``8.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
