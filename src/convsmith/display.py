"""What a person sees of a run: progress, a line an epoch, tables, a last panel; plain lines without a terminal."""

from __future__ import annotations

import atexit
import importlib.util
import signal
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from convsmith.config import RunConfig
from convsmith.errors import command
from convsmith.events import EpochEnd, FeatureExtractionProgress, Finished, Interrupted, StepProgress, Unfroze
from convsmith.nets.shapes import LayerRow, totals
from convsmith.prediction.metrics import wilson_interval
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.training.experiment import Event, epochs
from convsmith.training.setup import Experiment

EXIT_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
# 73 columns, and 5 more for `best`: a terminal has 80.
COLUMNS = (
    f"{'epoch':>7} {'train loss':>10} {'acc':>6}  {'val loss':>8} {'acc':>6} {'F1':>5}  "
    f"{'lr':>7} {'img/s':>7} {'time':>7}"
)
INDENT = 8  # of what is told before the first step
MOST_CLASSES = 30


class Display:
    """Shows events of a run on a console (the terminal's or a notebook's, as rich finds it)."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        if not self.live:  # a file or a pipe has no edge to wrap at
            self.console.width = max(self.console.width, 160)
        self.last: Event | None = None
        self._bar: Progress | None = None
        atexit.register(self.clear)  # a bar hides the cursor: whatever ends the process, it comes back

    @property
    def live(self) -> bool:
        widgets = self.console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        return self.console.is_terminal or widgets  # rich warns at each step of a bar in a notebook without widgets

    def line(self, text: str) -> None:
        self.console.print(Text(text))

    def counting(self, what: str) -> Callable[[int, int], None]:
        """A function of (done, total) that draws a bar, or a line at the end where there is no terminal."""

        def show(done: int, total: int) -> None:
            if not self.live:
                if done == total:
                    self.line(f"{what} {total:,} images: done")
                return
            if self._bar is None:
                text = TextColumn("{task.completed:,} of {task.total:,}")
                self._bar = Progress(TextColumn(what), BarColumn(), text, TimeRemainingColumn(), console=self.console)
                self._bar.add_task("", total=total)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=done)
            if done == total:
                self._bar.stop()
                self._bar = None

        return show

    def clear(self) -> None:
        """Take away a bar whose work was broken off."""
        if self._bar is not None:
            self._bar.live.transient = True
            self._bar.stop()
            self._bar = None

    def opening(self, experiment: Experiment) -> None:
        """Data, model, machine, and what the training will need, before its first step."""
        config, dataset, needs = experiment.config, experiment.dataset, experiment.needs
        data, train = config.data, config.train
        size = f"{data.image_size} x {data.image_size} x {data.channels}"
        if data.working_size != data.image_size:
            size += f" from {data.working_size} x {data.working_size} in the cache"
        sealed = f"{dataset.test_size:,} test (sealed)" if dataset.test_size else "no test split"
        parameters = sum(parameter.numel() for parameter in experiment.state.model.parameters())
        self._told("run", str(experiment.run.path))
        self._told(
            "data",
            f"{data.source}: {len(dataset.train):,} train, {len(dataset.val):,} val, {sealed}; "
            f"{len(dataset.classes)} classes; {size}, resize {data.resize}",
        )
        if failures := len(dataset.failures):
            files = "1 file that does not decode is" if failures == 1 else f"{failures} files that do not decode are"
            self._told("", f"{files} skipped: {experiment.run.skipped}")
        work = totals(experiment.layers).multiply_adds / 1e6
        self._told("model", f"{config.model.name}: {parameters:,} parameters, {work:,.1f} M multiply-adds an image")
        threads = "1 thread" if train.threads == 1 else f"{train.threads} threads"
        self._told("machine", f"{train.device}, {threads}, {train.layout} layout")
        estimate = f"about {needs.memory / 1e6:,.0f} MB for weights, optimiser and activations"
        if experiment.seconds_per_epoch:
            epoch = experiment.seconds_per_epoch
            count = experiment.image_epochs
            times = f"about {duration(epoch)} an epoch, {duration(epoch * count)} for {count}"
            if count < train.epochs:
                few = f"next to nothing for {train.epochs - count} epochs on features that are computed once"
                times = f"{times} on images; {few}" if count else few
            estimate = f"{times}; {estimate}"
        self._told("needs", estimate)
        self.notes(experiment.notes)

    def notes(self, notes: Sequence[str]) -> None:
        for number, note in enumerate(notes):
            self._told("" if number else "note", note)

    def _told(self, label: str, text: str) -> None:
        """A labelled line; on a terminal its words are wrapped below each other."""
        line = f"{label:{INDENT}}{text}"
        if not self.live:
            self.line(line)
            return
        width = max(self.console.width, 4 * INDENT)
        whole = {"break_long_words": False, "break_on_hyphens": False}  # paths stay in one piece
        self.line("\n".join(textwrap.wrap(line, width, subsequent_indent=" " * INDENT, **whole)))  # type: ignore[arg-type]

    def follow(self, experiment: Experiment) -> int:
        """Run the experiment to its end or to a signal; the exit code of the process."""
        self.opening(experiment)
        with Interrupts() as interrupts:
            if self.live:
                self._follow_live(experiment, interrupts)
            else:
                self.line(COLUMNS)
                featuring = self.counting("features of")
                for event in epochs(experiment, interrupts):
                    self.last = event
                    if isinstance(event, EpochEnd):
                        self.line(epoch_line(event, experiment.config))
                    elif isinstance(event, FeatureExtractionProgress):
                        featuring(event.done, event.total)
                    elif isinstance(event, Unfroze):
                        self.line(unfroze_line(event))
        if isinstance(self.last, Finished):
            self.finished(experiment, self.last)
            return 0
        assert isinstance(self.last, Interrupted)
        go_on = command("resume", experiment.run.path)
        self.line(f"\nstopped and saved at step {experiment.state.step}; go on with: {go_on}")
        return EXIT_CODES[self.last.signal]

    def _follow_live(self, experiment: Experiment, interrupts: Interrupts) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]:.4f}  acc {task.fields[accuracy]:.1%}  {task.fields[rate]:,.0f} img/s"),
            TimeRemainingColumn(compact=True),
        )
        self.console.print(COLUMNS, style="bold")
        with Progress(*columns, console=self.console, transient=True) as progress:
            whole = experiment.steps * experiment.config.train.epochs
            bar = progress.add_task("", total=whole, completed=experiment.state.step, loss=0.0, accuracy=0.0, rate=0.0)
            for event in epochs(experiment, interrupts):
                self.last = event
                if isinstance(event, StepProgress):
                    progress.update(
                        bar,
                        completed=event.step,
                        description=f"epoch {event.epoch}/{experiment.config.train.epochs}",
                        loss=event.loss,
                        accuracy=event.accuracy,
                        rate=event.images_per_second,
                    )
                elif isinstance(event, EpochEnd):
                    self.console.print(epoch_line(event, experiment.config), style="" if event.best else "dim")
                elif isinstance(event, FeatureExtractionProgress):
                    progress.update(bar, description=f"features of {event.done:,}/{event.total:,} images")
                elif isinstance(event, Unfroze):
                    self.console.print(unfroze_line(event))

    def finished(self, experiment: Experiment, end: Finished) -> None:
        run, summary, val = experiment.run, end.summary, end.evaluation
        low, high = wilson_interval(round(val["accuracy"] * val["n"]), val["n"])
        lines = [
            f"val accuracy {val['accuracy']:.2%}  (95% interval {low:.2%} to {high:.2%}, {val['n']:,} images)",
            f"precision {val['precision']['macro']:.4f}   recall {val['recall']['macro']:.4f}   "
            f"F1 {val['f1']['macro']:.4f}   loss {val['loss']:.4f}   ECE {val['ece']:.4f}",
            f"best epoch {summary['best_epoch']} of {summary['epochs']} ({summary['stopped_because']}), "
            f"{duration(summary['seconds'])}, {summary['images_per_second']:,.0f} images/s",
            "",
            f"written  {run.path}/",
            "           model/  the best weights, with their preprocessing",
            f"           {run.metrics.name}, {run.evaluation('val').name}, {run.predictions('val').name}",
            "           figures/curves.png, figures/confusion.png",
        ]
        if end.tracked:
            lines.append(f"W&B      {end.tracked}")
        lines.append("")
        steps = [command("evaluate", run.path, "--split", "test")] if experiment.dataset.test_size else []
        steps.append(f"{command('predict', run.path)} IMAGE...")
        lines += [f"{'' if number else 'next:':6}{step}" for number, step in enumerate(steps)]
        self.console.print(Panel(Text("\n".join(lines)), title=Text(summary["name"]), expand=False), soft_wrap=False)

    def evaluated(self, run: RunDir, split: str, record: dict[str, Any]) -> None:
        low, high = wilson_interval(round(record["accuracy"] * record["n"]), record["n"])
        self.line(f"{split} split of {run.path}: {record['n']:,} images")
        self.line(f"accuracy  {record['accuracy']:.2%}  (95% interval {low:.2%} to {high:.2%})")
        self.line(f"loss      {record['loss']:.4f}   ECE {record['ece']:.4f}")
        averages = Table("average", "precision", "recall", "F1", box=None, pad_edge=False)
        for average in ("macro", "micro", "weighted"):
            averages.add_row(average, *(f"{record[score][average]:.4f}" for score in ("precision", "recall", "f1")))
        self.console.print(averages)
        worst = sorted(record["per_class"].items(), key=lambda item: item[1]["f1"])
        shown = record["per_class"].items() if len(worst) <= MOST_CLASSES else worst[:MOST_CLASSES]
        table = Table("class", "precision", "recall", "F1", "images", box=None, pad_edge=False)
        for name, scores in shown:
            table.add_row(
                Text(name), *(f"{scores[key]:.4f}" for key in ("precision", "recall", "f1")), f"{scores['support']:,}"
            )
        self.line(
            "" if len(worst) <= MOST_CLASSES else f"\nthe {MOST_CLASSES} classes with the lowest F1 of {len(worst)}:"
        )
        self.console.print(table)
        if len(worst) <= 12:
            self._confusion(record)
        self.line(f"\nwritten: {run.evaluation(split)}, {run.predictions(split)}")
        if split == "test":
            self.line(f"         the opening of the test split is noted in {run.test_access}")
        self.line(f"next: {command('predict', run.path)} IMAGE...")

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
            "multiply-adds": [f"{row.multiply_adds:,}" if row.multiply_adds else "" for row in rows],
            "field": [str(row.receptive_field or "") for row in rows],
        }
        self.line(title)
        table = _table(columns)
        if self._natural_width(table) <= self.console.width:
            self.console.print(table)
        else:  # nothing is cut off in a narrow terminal: the columns go below each other
            below = ("kind", "size: (T - K + 2P)/S + 1")
            self.console.print(_table({name: cells for name, cells in columns.items() if name not in below}))
            self.line("")
            self.console.print(_table({name: columns[name] for name in ("layer", *below)}))
        whole = totals(rows)
        self.line(f"\n{whole.parameters:,} parameters, {whole.multiply_adds:,} multiply-adds for one image")
        self.line("K kernel, S stride, P padding, T input size; field: receptive field in pixels")
        lost = [row for row in rows if row.discarded]
        for row in lost:
            pixels = "1 pixel" if row.discarded == 1 else f"{row.discarded} pixels"
            self.line(f"note: {row.name} discards {pixels} at the edge, where its stride does not divide")

    def _natural_width(self, table: Table) -> int:
        return self.console.measure(table, options=self.console.options.update(width=10_000)).maximum

    def _confusion(self, record: dict[str, Any]) -> None:
        names = record["classes"]
        table = Table("true \\ predicted", *(escape(name[:8]) for name in names), box=None, pad_edge=False)
        for name, row in zip(names, record["confusion_matrix"]["counts"], strict=True):
            table.add_row(Text(name), *(Text(f"{count:,}" if count else "·", justify="right") for count in row))
        self.line("")
        self.console.print(table)

    def predicted(self, rows: Sequence[dict[str, Any]], top_k: int, out: Path | None) -> None:
        table = Table("image", "predicted", "probabilities", box=None, pad_edge=False)
        for row in rows:
            chances = sorted(((value, key[2:]) for key, value in row.items() if key.startswith("p_")), reverse=True)
            listed = "  ".join(f"{name} {chance:.1%}" for chance, name in chances[:top_k])
            table.add_row(Text(str(row["id"])), Text(row["predicted"]), Text(listed))
        self.console.print(table)
        if out:
            self.line(f"\nwritten: {out}")


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    """Columns by heading; numbers and shapes stand to the right."""
    table = Table(box=None, pad_edge=False)
    for heading in columns:
        right = heading in ("output", "parameters", "multiply-adds", "field")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    return table


def epoch_line(end: EpochEnd, config: RunConfig) -> str:
    row = end.row
    return (
        f"{row['epoch']:>3}/{config.train.epochs:<3} {row['train_loss']:>10.4f} {row['train_accuracy']:>6.1%}  "
        f"{row['val_loss']:>8.4f} {row['val_accuracy']:>6.1%} {row['val_f1']:>5.3f}  {row['learning_rate']:>7.2g} "
        f"{row['images_per_second']:>7,.0f} {clock(row['seconds']):>7}{' best' if end.best else ''}"
    )


def unfroze_line(event: Unfroze) -> str:
    return (
        f"{'':7} from epoch {event.epoch + 1} on {', '.join(event.stages)} train too: {event.parameters:,} parameters"
    )


def _square(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def clock(seconds: float) -> str:
    """``8.3 s``, ``99 s``, ``1:42``, ``1:02:05``: for a column."""
    if seconds < 99.5:
        return duration(seconds)
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def duration(seconds: float) -> str:
    """``8.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
