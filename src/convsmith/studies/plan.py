"""The plan of an ablation study: its arms, its folds, and the run that each pair of them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convsmith.config import validate
from convsmith.files import read_json
from convsmith.rundir import RunDir
from convsmith.studies import study
from convsmith.studies.fold_job import FoldJob

ARMS = "arms.json"  # each arm's resolved config, the hash of its data, the seconds that an epoch was measured to take
Scores = dict[str, dict[int, dict[str, Any]]]  # arm -> place of the run -> its record


@dataclass(frozen=True)
class Plan:
    """A study directory, read: which runs there are. Run k of each arm has the same fold and the same seed."""

    run: RunDir
    asked: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    folds: dict[str, Any]

    @property
    def runs(self) -> int:
        """Runs of an arm: each division of the images once for each seed."""
        return len(self.folds["divisions"]) * int(self.asked["seeds"])

    def job(self, arm: str, place: int) -> FoldJob:
        divisions = len(self.folds["divisions"])
        known = self.arms[arm]
        config = validate(known["config"])
        config = config.with_values(train={"seed": config.train.seed + place}, track={"group": self.run.name})
        return FoldJob(
            name=f"{arm} {place + 1}",
            directory=str((self.run.path / "arms" / arm / str(place + 1)).resolve()),
            folds_file=str((self.run.path / study.FOLDS).resolve()),
            index=place % divisions,
            config=config.model_dump(mode="json"),
            data_hash=known["hash"],
            choices=tuple(self.asked["choices"]),
            choice_epochs=self.asked["choice_epochs"],
        )

    def scores(self) -> Scores:
        """The records of the runs that are done."""
        jobs = {arm: [self.job(arm, place) for place in range(self.runs)] for arm in self.arms}
        return {arm: {place: job.record() for place, job in enumerate(of) if job.done} for arm, of in jobs.items()}


def read_plan(run: RunDir) -> Plan:
    return Plan(run, study.read_asked(run), read_json(run.path / ARMS), read_json(run.path / study.FOLDS))
