"""`ablate --detect`: how large a study must be to find a difference, and what that costs. Nothing is trained here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from convsmith.config import Layer
from convsmith.errors import UserError
from convsmith.events import Listener, nobody
from convsmith.records import METRICS
from convsmith.studies import own, study, text
from convsmith.studies.config import BASE, StudyConfig, choices_of
from convsmith.studies.crossval import divide
from convsmith.studies.power import Components, Design, enough, images_for, known_of, units_of
from convsmith.studies.preparation import prepare_arms, refuse_budget, resolved, seconds_per_epoch, sized, trainings
from convsmith.terminal import plural
from convsmith.training.own import NO_PARTS, Parts


@dataclass(frozen=True)
class AblationPlan:
    """What a study would have to be to find a difference, from `ablate(..., detect=...)`. Nothing was trained.

    `detect` and what the designs find are in the metric's own unit (0.005 for half a point of accuracy); `needed` is
    None where repeats alone do not suffice. `seconds` are those of all trainings of one fold, the base's included.
    """

    metric: str
    detect: float
    known: Components
    asked: Design
    needed: Design | None
    seconds: float
    max_workers: int
    budget: float | None

    @property
    def designs(self) -> list[Design]:
        """The study as it is, the one that is needed, and some between; with a budget, the largest that it pays."""
        end = self.needed or self.asked.repeated(self.asked.most_repeats)
        repeats = {self.asked.repeats, end.repeats}
        step = min(self.asked.repeats, end.repeats)
        while (step := 2 * step) < end.repeats and len(repeats) < 6:
            repeats.add(step)
        if within := self.within_budget:
            repeats.add(within.repeats)
        return [self.asked.repeated(number) for number in sorted(repeats)]

    @property
    def within_budget(self) -> Design | None:
        """The largest design of which all trainings fit into the budget; None without a budget, or where none fits."""
        if self.budget is None or self.seconds == 0:
            return None
        repeats = int(self.budget / self.minutes(self.asked.repeated(1)))
        return self.asked.repeated(min(repeats, self.asked.most_repeats)) if repeats else None

    @property
    def options(self) -> dict[str, int]:
        """The options of `ablate` with which the study is large enough; with a budget, as large as that allows."""
        chosen = self.needed or self.asked
        return {"folds": chosen.folds, "repeats": chosen.repeats, "seeds": chosen.seeds}

    def minutes(self, design: Design) -> float:
        """The expected minutes of all trainings of a design, the base's included."""
        return self.seconds * design.runs / self.max_workers / 60

    def table(self) -> list[dict[str, str]]:
        """One row per design, the study as it is among them; column names include the units."""
        shown = text.unit(self.metric)
        return [
            {
                "folds": str(design.folds),
                "repeats": str(design.repeats),
                "seeds": str(design.seeds),
                "trainings": str(design.runs * (1 + design.arms)),
                "minutes": f"{self.minutes(design):.3g}",
                text.heading("detects", shown.of_differences): shown.value(design.finds(self.known)),
                "": self._mark(design),
            }
            for design in self.designs
        ]

    def _mark(self, design: Design) -> str:
        marks = {"as it is": self.asked, "enough": self.needed, "within the budget": self.within_budget}
        return ", ".join(mark for mark, marked in marks.items() if marked == design)

    @property
    def conclusion(self) -> str:
        """What is needed, on which assumptions, in words, one statement per line."""
        shown = text.unit(self.metric)
        label, wanted = METRICS[self.metric].label, shown.words(shown.value(self.detect))
        lines = []
        if self.needed is None:
            lines.append(
                f"No number of repeats finds a difference in {label} of {wanted} on {self.asked.images:,} "
                f"{self.asked.units}: at least {images_for(self.asked, self.known, self.detect):,} are needed."
            )
        else:
            lines.append(
                f"A difference in {label} of {wanted} is found in 8 of 10 studies, after Holm's correction for "
                f"{plural(self.asked.arms, 'arm')}, with {self.needed.folds} folds, "
                f"{plural(self.needed.repeats, 'repeat')} and {plural(self.needed.seeds, 'seed')}: "
                f"{self.needed.runs} trainings of each arm, about "
                f"{self.minutes(self.needed):.3g} minutes, {self.max_workers} at once."
            )
        if self.budget is not None and (within := self.within_budget) != self.needed:
            if within is None:
                lines.append(f"{self.budget:g} minutes do not even suffice for one repeat of all arms.")
            elif self.needed is None or within.repeats < self.needed.repeats:
                found = shown.words(shown.value(within.finds(self.known)))
                lines.append(f"{self.budget:g} minutes suffice for {within.repeats} repeats, which find {found}.")
        lines.append(f"What varies is {self.known.source}.")
        return "\n".join(lines) + "\n"

    def __repr__(self) -> str:
        return f"AblationPlan({self.options}, {self.minutes(self.needed or self.asked):.3g} minutes)"


def plan(
    config: StudyConfig,
    flags: Layer | None = None,
    parts: Parts = NO_PARTS,
    *,
    detect: float,
    folds: int | None = None,
    repeats: int | None = None,
    seeds: int | None = None,
    jobs: int = 1,
    backend: str = "local",
    budget: float | None = None,
    runs_dir: Path = Path("runs"),
    listener: Listener = nobody,
) -> AblationPlan:
    """How large the study has to be to find a difference of `detect`, and what that costs; nothing is trained.

    `detect` is in the unit in which the metric is shown (points for accuracy). Raises what `ablate` raises, and
    UserError where nothing is known of how the study's metric varies.
    """
    config = sized(config, folds, repeats, seeds)
    study.refuse_jobs(jobs, backend)
    refuse_budget(budget)
    metric = METRICS[config.metric]
    if not 0 < detect < math.inf or (metric.unit == "share" and detect > metric.scale):
        raise UserError(f"--detect {detect:g}: must be a difference in {metric.label} above 0, such as 0.5")
    arms = resolved(config, flags, parts)
    max_workers = min(own.workers(jobs, backend, parts, nobody), trainings(config))
    ready = prepare_arms(arms, parts, max_workers, listener)
    dataset = ready[BASE].dataset
    divisions = divide(dataset, ready[BASE].config, config.folds, config.repeats)
    if (known := known_of(runs_dir, config.metric, dataset)) is None:
        raise UserError(
            f"--detect: nothing is known yet of how differences in {metric.label} vary on these data, and only for "
            f"accuracy can it be assumed: run the study at a small size first, below '{runs_dir}', and plan then"
        )
    design = Design(config.folds, config.repeats, config.seeds, len(arms) - 1, *units_of(dataset))
    choices = choices_of(config, arms[BASE].model_dump(mode="json"))
    epochs = len(choices) * (config.choose.epochs if config.choose else 0)
    return AblationPlan(
        metric=config.metric,
        detect=detect / metric.scale,
        known=known,
        asked=design,
        needed=enough(design, known, detect / metric.scale),
        seconds=sum(seconds_per_epoch(one, divisions) * (one.config.train.epochs + epochs) for one in ready.values()),
        max_workers=max_workers,
        budget=budget,
    )
