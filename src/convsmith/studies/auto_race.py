"""The race of `auto`: candidates on the folds, one after the other, as long as there is time. Writes auto.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsmith import records
from convsmith.config import Layer, RunConfig, merge, validate
from convsmith.data.dataset import HELD_OUT, Dataset
from convsmith.data.preprocess import ToInput
from convsmith.data.sources import cache_folder
from convsmith.data.stored import read_arrays, write_arrays
from convsmith.errors import RunFailed, Stopped, UserError, command
from convsmith.events import CandidateDone, Listener, counter
from convsmith.memory import explain_memory_errors
from convsmith.prediction.model_file import FORMATS
from convsmith.rundir import RunDir, default_name
from convsmith.runtime import Interrupts, set_threads
from convsmith.studies import auto_plan
from convsmith.studies.auto_candidates import PENALTIES, Candidate, start_of
from convsmith.studies.auto_plan import Score
from convsmith.studies.auto_probe import probe
from convsmith.studies.auto_train import Trained, train_on
from convsmith.studies.folds import Fold
from convsmith.terminal import plural
from convsmith.training import setup
from convsmith.training.experiment import CLEAN_IMAGES
from convsmith.training.own import Parts
from convsmith.transfer.features import FeatureFiles

RACE = "race"  # the folder of what the race needs until it ends
FIXED = 4.0  # seconds that a training, or preparing a candidate, takes besides its epochs, before one was measured
VALIDATED = 1.15  # the factor for the validation after each epoch
SHORTEST = 1.0  # seconds of the shortest training that is worth preparing for
CLOSING = 6.0  # seconds for the report and the last files, besides what the network has to compute
FIRST = 100  # images after which the speed of a backbone is known
SHARE = 0.6  # of the time that is left, which a backbone's features may take
LAYOUT = "channels_last"  # in which backbones compute features faster, and training, which may be unsafe, is not needed
CLEAN = CLEAN_IMAGES

Logits = NDArray[np.floating[Any]]


class Race:
    """The candidates on the folds of a study's pool, with the clock. `record` is the content of auto.json."""

    def __init__(
        self,
        run: RunDir,
        config: RunConfig,
        parts: Parts,
        dataset: Dataset,
        folds: list[Fold],
        groups: NDArray[np.int64] | None,
        record: dict[str, Any],
        began: float,
        interrupts: Interrupts,
        listener: Listener,
    ) -> None:
        self.run, self.config, self.parts, self.dataset = run, config, parts, dataset
        self.folds, self.groups, self.record = folds, groups, record
        self.pool = dataset.pool()
        self._began, self._before = began, float(record["seconds"])
        self.interrupts, self.listener = interrupts, listener
        self.threads = set_threads(None)
        self._fixed, self._preparing = FIXED, FIXED
        self._is_fixed_measured = False
        self._per_pixel = 0.0  # seconds of a backbone, of the slowest so far

    @property
    def seconds(self) -> float:
        """Time spent so far, in this process and in those before it."""
        return self._before + time.monotonic() - self._began

    @property
    def crossed(self) -> bool:
        return bool(self.record["folds"])

    def left(self, final: float) -> float:
        """Seconds for further candidates, if the end takes `final`."""
        closing = auto_plan.closing_seconds(CLOSING, self._fixed, FIXED)
        return 60 * float(self.record["minutes"]) - self.seconds - auto_plan.SLOWER * (final + closing)

    def save(self) -> None:
        self.record["seconds"] = self.seconds
        records.write(self.run.auto, records.Auto, self.record)

    def stop_if_interrupted(self) -> None:
        if self.interrupts.received:
            self.save()
            raise Stopped(
                self.interrupts.received, f"stopped and saved; continue with {command('resume', self.run.path)}"
            )

    def raced(self) -> dict[str, list[Score]]:
        """The scores of the candidates that have run on every fold, and lost early on none."""
        return {
            entry["name"]: [_score(fold) for fold in entry["folds"]]
            for entry in self.record["candidates"]
            if entry["state"] == "raced"
        }

    def on_fold(self, number: int) -> dict[str, list[Score]]:
        """The score of each candidate that has run on this fold and not lost early on it: all that the fold knows."""
        return {
            entry["name"]: [_score(entry["folds"][number])]
            for entry in self.record["candidates"]
            if len(entry["folds"]) == len(self.folds) and not entry["folds"][number].get("lost")
        }

    def entry(self, name: str) -> dict[str, Any]:
        """What auto.json says of a candidate."""
        found: dict[str, Any] = next(entry for entry in self.record["candidates"] if entry["name"] == name)
        return found

    def known(self, candidate: Candidate) -> bool:
        return any(entry["name"] == candidate.name for entry in self.record["candidates"])

    def config_of(self, layer: Layer) -> RunConfig:
        """The race's config with what a candidate changes. Nothing is chosen by validation images but the candidate."""
        base = self.config.model_dump(mode="json", exclude_unset=True)
        return validate(merge(layer, base, {"train": {"keep": "last"}}))

    def prepared(self, layer: Layer, what: str, measured: bool = False) -> setup.Prepared:
        set_threads(self.threads)  # which a small net before may have lowered
        progress = counter(self.listener, f"{what}: decoding")
        began = time.monotonic()
        prepared = setup.prepare(self.untracked(layer), self.parts, progress, measured=measured)
        self._preparing = max(self._preparing, time.monotonic() - began)
        return prepared

    def untracked(self, layer: Layer) -> RunConfig:
        """The config of a candidate's training, of which there may be dozens."""
        return self.config_of(layer).with_values(track={"wandb": "off"})

    def skip(self, candidate: Candidate, reason: str, began: float) -> None:
        self._note(candidate, candidate.layer, "skipped", reason, began, [])

    def _note(
        self, candidate: Candidate, layer: Layer, state: str, reason: str, began: float, folds: list[dict[str, Any]]
    ) -> None:
        entry = {
            "name": candidate.name,
            "family": candidate.family,
            "layer": layer,
            "state": state,
            "reason": reason,
            "seconds": time.monotonic() - began,
            "folds": folds,
        }
        self.record["candidates"].append(entry)
        self.record["running"] = None
        self.save()
        self.run.log(f"{candidate.name}: {state} {reason}".rstrip())
        spent, budget = self.seconds, 60 * float(self.record["minutes"])
        self.listener(CandidateDone(entry, auto_plan.means(folds), spent, budget))

    # What the end takes: decoding once more, the evaluation of val and clean train images, and heat maps.
    def final_seconds(self, name: str) -> float:
        entry = self.entry(name)
        images = len(self.pool)
        passes = min(images, CLEAN + images // 5) + 60
        training = float(entry.get("final", 0.0))
        return training + self._fixed + passes * float(entry.get("per_image", 0.0))

    def final_of_best(self) -> float:
        raced = self.raced()
        return self.final_seconds(auto_plan.best(raced)) if raced else 0.0

    def _path(self, candidate: str, number: int) -> Path:
        return self.run.path / RACE / f"{default_name(candidate)}-{number}.npz"

    def kept(self, candidate: str, number: int) -> Trained | None:
        """The logits of a candidate on a fold; None if they are not there."""
        wanted = (np.float64, (None, len(self.dataset.classes)))
        arrays = read_arrays(self._path(candidate, number), val=wanted, held_out=wanted, done=(np.int64, ()))
        if arrays is None:
            return None
        lost = "" if arrays["done"] else "before"
        return Trained(arrays["val"], arrays["held_out"], 0.0, 0.0, lost)

    def _keep(self, candidate: Candidate, number: int, val: Logits, held_out: Logits | None, lost: str = "") -> None:
        """Write the logits of a fold, so that a killed race has them."""
        none = np.empty((0, val.shape[1]))
        (self.run.path / RACE).mkdir(exist_ok=True)
        outside = (none if held_out is None else held_out).astype(np.float64)
        done = np.array(int(not lost))
        write_arrays(
            self._path(candidate.name, number), {"val": val.astype(np.float64), "held_out": outside, "done": done}
        )

    def probe(self, candidate: Candidate) -> None:
        """Compute a backbone's features once, and solve heads on all folds; leaves out what does not fit."""
        began = time.monotonic()
        size = candidate.layer["data"]["image_size"]
        allowed = SHARE * self.left(self.final_of_best())
        if len(self.pool) * size**2 * self._per_pixel + self._preparing > allowed:
            self.skip(candidate, f"no time for its features: {max(allowed, 0):.0f} s left", began)
            return
        prepared = self.prepared(merge(candidate.layer, {"train": {"layout": LAYOUT}}), candidate.name, measured=True)
        config, dataset = prepared.config, prepared.dataset
        files = FeatureFiles(
            prepared.model.to(device=prepared.device, memory_format=FORMATS[config.train.layout]),  # type: ignore[call-overload]
            dataset,
            dataset.train.sample(CLEAN),
            ToInput(dataset.preprocessing(), prepared.device, FORMATS[config.train.layout]),
            config.augment,
            config.transfer.feature_views,
            cache_folder(config.data) / "features",
            precision=config.train.precision,
        )
        started = time.monotonic()
        progress, expected, done = counter(self.listener, f"{candidate.name}: features"), 0.0, 0
        total = 0

        def too_long() -> bool:
            # The first batches are slower than the rest: what would just not fit may do so.
            return bool(self.interrupts) or expected > (allowed if done >= FIRST else 2 * allowed)

        for done, total in files.compute(too_long):
            expected = (time.monotonic() - started) / done * total
            self._per_pixel = max(self._per_pixel, expected / total / size**2)
            progress(done, total)
            if too_long() and done < total:
                break
        self.stop_if_interrupted()
        if done < total:
            self.skip(candidate, f"its features need {expected:.0f} s of {max(allowed, 0):.0f} s left", began)
            return
        per_image = (time.monotonic() - started) / len(self.pool) if expected else 0.0
        features = files.plain(self.pool)
        labels, classes, seed = self.pool.labels, len(dataset.classes), self.config.data.split_seed
        scores, losses = [], np.zeros(len(PENALTIES))
        for number, fold in enumerate(self.folds):
            found = probe(features, labels, fold, classes, self.groups, seed)
            self._keep(candidate, number, found.val, found.held_out)
            score = asdict(Score.of(found.val, labels[fold.val]))
            scores.append(score | {"penalty": found.penalty})
            losses += found.losses
            self.stop_if_interrupted()
        layer = merge(
            candidate.layer,
            {
                "transfer": {"head_l2": PENALTIES[int(losses.argmin())]},
                "train": config.train.model_dump(include={"layout", "precision", "threads"}),
            },
        )
        self._note(candidate, layer, "raced", "", began, scores)
        self.entry(candidate.name)["per_image"] = per_image

    def train(self, candidate: Candidate, rivals: int) -> None:
        """Train a candidate on each fold, with as many epochs as fit into its share of the time that is left."""
        began = time.monotonic()
        final = len(self.pool) / len(self.folds[0].train)
        must = not self.raced() and candidate.family == "scratch"  # something has to be trained
        allowed = self.left(self.final_of_best()) / rivals
        running = self.record["running"]
        if running is not None and running["name"] == candidate.name:  # before it was stopped
            layer = running["layer"]
        else:
            planned = self._planned(candidate, len(self.folds) + final, allowed, must)
            if isinstance(planned, str):
                self.skip(candidate, planned, began)
                return
            layer = planned
            self.record["running"] = {"name": candidate.name, "layer": layer}
            self.save()
        scores, lost = [], []
        for number, fold in enumerate(self.folds):
            leader = self._leader(number)

            def loses(accuracy: float, share: float, leader: float = leader, n: int = len(fold.val)) -> bool:
                return auto_plan.is_lost(accuracy, n, share, leader)

            if (trained := self.kept(candidate.name, number)) is None:
                trained = train_on(
                    self.untracked(merge(layer, self._start(candidate, number))),
                    self.parts,
                    self.splits(fold),
                    self.run.path / RACE / candidate.slug / str(number + 1),
                    self.interrupts,
                    loses,
                    self._progress(candidate, number),
                )
                self.stop_if_interrupted()
                assert trained is not None
                self._keep(candidate, number, trained.val, trained.held_out, trained.lost)
                if not trained.lost:
                    self._fixed, self._is_fixed_measured = max(SHORTEST, trained.seconds - trained.trained), True
            score = asdict(Score.of(trained.val, self.pool.labels[fold.val]))
            scores.append(score | ({"lost": True} if trained.lost else {}))
            lost += [trained.lost] if trained.lost else []
            expected = (time.monotonic() - began) / (number + 1) * (len(self.folds) + final)
            late = expected > 2 * allowed and number + 1 < len(self.folds)
            if late and not must:
                self._note(
                    candidate,
                    layer,
                    "stopped",
                    f"after {plural(number + 1, 'fold')}, to keep the budget",
                    began,
                    scores,
                )
                return
        if lost:
            folds = f" on {len(lost)} of {len(self.folds)} folds" if self.crossed else ""
            reason = f"behind{folds} {lost[0]}"
            self._note(candidate, layer, "stopped", reason, began, scores)
        else:
            self._note(candidate, layer, "raced", "", began, scores)
            entry = self.entry(candidate.name)
            entry["final"] = final * (time.monotonic() - began) / len(self.folds)

    def _start(self, candidate: Candidate, number: int) -> Layer:
        """Where the finetuning of a fold starts: the probe and the penalty that the fold itself has chosen.

        The images that it holds out took part in the choice of every other fold.
        """
        if candidate.family != "finetune":
            return {}
        scores = {name: own for name, own in self.on_fold(number).items() if self.entry(name)["family"] == "probe"}
        probe = self.entry(auto_plan.best(scores))
        return start_of(probe["layer"], probe["folds"][number]["penalty"])

    def _planned(self, candidate: Candidate, trainings: float, allowed: float, must: bool) -> Layer | str:
        """What a candidate's trainings change in the config, with the epochs that fit; or in words why none do."""
        if not must and trainings * SHORTEST + self._preparing > allowed:
            return f"no time for {plural(len(self.folds), 'training')}"
        began, images = time.monotonic(), len(self.folds[0].train)
        prepared = self.prepared(candidate.layer, candidate.name)
        assert prepared.seconds_per_epoch is not None
        per_epoch = prepared.seconds_per_epoch * images / len(prepared.dataset.train) * VALIDATED
        allowed -= time.monotonic() - began
        least, most = candidate.least, candidate.most
        # What is not measured yet must not rule a candidate out: its first fold shows whether the others fit.
        fixed = self._fixed if self._is_fixed_measured else SHORTEST
        epochs = auto_plan.fitting_epochs(least, most, per_epoch, fixed, trainings, allowed)
        if not epochs:
            if not must:
                return auto_plan.no_epochs(least, per_epoch, fixed, trainings, allowed)
            epochs = auto_plan.fitting_epochs(1, least, per_epoch, fixed, trainings, allowed) or 1
        train = prepared.config.train
        measured = train.model_dump(include={"layout", "precision", "threads"})
        return merge(candidate.layer, {"train": measured | {"epochs": epochs}})

    def _leader(self, number: int) -> float:
        """The best accuracy so far on the inner validation images of a fold; 0 if there is none."""
        return max((scores[0].accuracy for scores in self.on_fold(number).values()), default=0.0)

    def _progress(self, candidate: Candidate, number: int) -> Callable[[float], None]:
        what = f"{candidate.name}: training" + (f", fold {number + 1} of {len(self.folds)}" if self.crossed else "")
        tell = counter(self.listener, what)
        return lambda share: tell(min(99, int(100 * share)), 100)

    def splits(self, fold: Fold) -> Mapping[str, list[str]]:
        """The ids of a fold, without those held out where they are to judge the end alone."""
        ids = self.pool.ids
        parts = {"train": fold.train, "val": fold.val, **({HELD_OUT: fold.held_out} if self.crossed else {})}
        return {part: [ids[row] for row in rows] for part, rows in parts.items()}

    def attempt(self, candidate: Candidate, rivals: int) -> None:
        """Run a candidate that is not known yet; one that fails is left out, with the reason.

        `rivals` is the number of candidates that are still to come, this one included.
        """
        if self.known(candidate):
            return
        began = time.monotonic()
        try:
            with explain_memory_errors(f"in candidate {candidate.name}"):
                if candidate.family == "probe":
                    self.probe(candidate)
                else:
                    self.train(candidate, rivals)
        except (RunFailed, UserError) as error:
            self.skip(candidate, str(error), began)


def _score(fold: Mapping[str, Any]) -> Score:
    return Score(**{key: fold[key] for key in Score.__dataclass_fields__})
