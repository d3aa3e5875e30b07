"""What an ablation is asked to be: its size, its arms, and these on its data, with what they share and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from convsmith.config import Layer, RunConfig
from convsmith.errors import RunFailed, UserError
from convsmith.events import Listener, Note, counter
from convsmith.studies import own, study
from convsmith.studies.config import BASE, MOST_FOLDS, StudyConfig, arms_of, changes, count_arms
from convsmith.studies.folds import Fold
from convsmith.training import setup
from convsmith.training.config import AUTO
from convsmith.training.own import Parts

Ready = dict[str, setup.Prepared]


def sized(config: StudyConfig, folds: int | None, repeats: int | None, seeds: int | None) -> StudyConfig:
    """The study with the numbers that were given instead of its own; UserError where it becomes too large."""
    given = {"folds": folds, "repeats": repeats, "seeds": seeds}
    for key, number in given.items():
        if number is not None:
            study.within(key, number, 2 if key == "folds" else 1, MOST_FOLDS)
    config = config.model_copy(update={key: number for key, number in given.items() if number is not None})
    study.refuse_too_many(config.folds, config.repeats, trainings(config))
    return config


def trainings(config: StudyConfig) -> int:
    """The number of trainings of a whole study."""
    return config.folds * config.repeats * config.seeds * (1 + count_arms(config))


def refuse_budget(budget: float | None) -> None:
    """A UserError for minutes that cannot be spent."""
    if budget is not None and not 0 < budget < math.inf:
        raise UserError(f"--budget {budget:g}: must be minutes above 0")


def resolved(config: StudyConfig, flags: Layer | None, parts: Parts) -> dict[str, RunConfig]:
    """The configs of the base and the arms; UserError where one changes a part of the user's own."""
    arms = {arm: own.named(known, parts) for arm, known in arms_of(config, flags or {}).items()}
    for arm in arms:
        own.refuse_unused(changes(arms[BASE], arms[arm]), parts, f"arm '{arm}'")
    if config.choose:
        own.refuse_unused(config.choose.hyperparameters, parts, "choose")
    return arms


def prepare_arms(arms: Mapping[str, RunConfig], parts: Parts, max_workers: int, listener: Listener) -> Ready:
    """Each arm ready to be trained; UserError or RunFailed names the arm that cannot be."""

    def prepare(arm: str, config: RunConfig) -> setup.Prepared:
        try:
            return setup.prepare(
                study.threads_for(config, max_workers), own.fresh(parts), counter(listener, "decoding")
            )
        except (UserError, RunFailed) as error:
            raise type(error)(f"arm '{arm}': {error}" if arm != BASE else str(error)) from None

    # The arms must differ in what they change alone: they share the precision that is the faster one for the base,
    base = prepare(BASE, arms[BASE])
    precision = {"precision": base.config.train.precision}
    arms = {arm: c.with_values(train=precision) if c.train.precision == AUTO else c for arm, c in arms.items()}
    prepared = {arm: base if arm == BASE else prepare(arm, config) for arm, config in arms.items()}
    if automatic := [arm for arm, config in arms.items() if config.train.batch_size == AUTO]:
        # and the size that fits all of them.
        shared = min(prepared[arm].config.train.batch for arm in automatic)
        for arm in automatic:
            if prepared[arm].config.train.batch != shared:
                prepared[arm] = prepare(arm, arms[arm].with_values(train={"batch_size": shared}))
        listener(Note(f"train.batch_size auto: {shared}, with which each of these arms fits: {', '.join(automatic)}"))
    return prepared


def seconds_per_epoch(ready: setup.Prepared, divisions: Sequence[Fold]) -> float:
    """The expected seconds of an epoch on a fold's training images; 0 where it was not measured."""
    return (ready.seconds_per_epoch or 0.0) * len(divisions[0].train) / len(ready.dataset.train)
