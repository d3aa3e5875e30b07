"""report.html of an ablation study, finished or not: what each arm changes, for which classes and images, at what cost.

All numbers of arms come from ablation.json (of an interrupted study, from what would be written there), and those of
images and classes from `effects`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from convsmith import records
from convsmith.config import RunConfig, validate
from convsmith.data.dataset import Subset
from convsmith.data.sources import Source
from convsmith.errors import UserError, command, damaged
from convsmith.figures.page import render
from convsmith.records import METRICS
from convsmith.report import arms
from convsmith.report.charts import KINDS
from convsmith.report.effects import of_an_image
from convsmith.report.images import Gallery
from convsmith.report.inputs import TEMPLATES, open_pool
from convsmith.rundir import RunDir
from convsmith.studies import text
from convsmith.studies.ablation import AblationResult
from convsmith.studies.comparison import ARMS, Plan, compared, read_plan
from convsmith.studies.config import BASE

UNFINISHED = "not finished"  # in place of a verdict
DETAILED = KINDS - 1  # arms that have sections of their own: as many as there are kinds of lines, beside the base


@dataclass(frozen=True, eq=False)
class Ablation:
    """A study and its record; `done` counts the trainings that are done. `source` are the data where they have moved.

    Of an interrupted study the record is that of the trainings so far, without verdicts but those of looks.
    """

    run: RunDir
    plan: Plan
    record: dict[str, Any]
    done: dict[str, int]
    environment: dict[str, Any]
    source: Source | None = None

    @property
    def finished(self) -> bool:
        return self.run.ablation.exists()

    @property
    def config(self) -> RunConfig:
        """The base's."""
        return validate(self.plan.arms[BASE]["config"])

    @cached_property
    def opened(self) -> tuple[Subset | None, str]:
        """The images that were divided into folds, or why they are not available."""
        return open_pool(self.run, self.config, self.plan.folds["hash"], self.source)

    @cached_property
    def detailed(self) -> list[Mapping[str, Any]]:
        """The arms that have sections of their own: those with the largest differences, in the order of the table."""
        known = [arm for arm in self.ordered if arm["difference"] is not None]
        most = sorted(known, key=lambda arm: -abs(arm["difference"]))[:DETAILED]
        return [arm for arm in known if arm in most]

    @property
    def ordered(self) -> list[Mapping[str, Any]]:
        """All arms, as the table has them."""
        return text.ranked(self.record)


def read_ablation(run: RunDir, source: Source | None = None) -> Ablation:
    """UserError where no training of the base is done, or a file is damaged."""
    plan = read_plan(run)
    done = {arm: len(of) for arm, of in plan.scores().items()}
    if not done[BASE]:
        raise UserError(f"no training of the base of '{run.path}' is done yet: {command('resume', run.path)}")
    if run.ablation.exists():
        record = records.read(run.ablation, records.Ablation)
        if {arm["name"] for arm in record["arms"]} != plan.arms.keys() - {BASE}:
            raise damaged(run.ablation, f"it has other arms than {ARMS}")
    else:
        record = compared(plan, {}, {})
        record["arms"] = [
            arm if arm.get("stopped") else arm | {"verdict": UNFINISHED, "p_holm": None} for arm in record["arms"]
        ]
    environment = records.read(run.environment, records.Environment) if run.environment.exists() else {}
    return Ablation(run, plan, record, done, environment, source)


def ablation_page(study: Ablation) -> str:
    """report.html of an ablation study."""
    record, plan, (pool, absent) = study.record, study.plan, study.opened
    gallery = Gallery(pool, plan.folds["pool"])
    shown = text.unit(record["metric"])
    details, unread = arms.details(plan, study.detailed, gallery)
    rows, total = text.table(record), len(plan.jobs())
    methods, _, cited = text.methods(record).partition("\n\nReferences\n")
    values = {
        "run": study.run,
        "record": record,
        "label": METRICS[record["metric"]].label,
        "of_an_image": METRICS[of_an_image(record["metric"])].label,
        "config": study.config,
        "finished": study.finished,
        "done": sum(study.done.values()),
        "total": total,
        "rows": rows,
        "columns": [name for name in rows[0] if name not in ("arm", "changes")],
        "forest": arms.forest(study.ordered, record, shown),
        "details": details,
        "left_out": len(record["arms"]) - len(study.detailed),
        "unread": unread,
        "early": any(arm.get("stopped") and arm["stopped"]["because"] != "plan" for arm in record["arms"]),
        "curves": arms.curves(plan, study.detailed),
        "cost": arms.cost(study.ordered, record, shown),
        "methods": methods,
        "cited": cited.strip().split("\n"),
        "conclusion": text.conclusion(record).strip().split("\n") if study.finished else [],
        "not_asked": _not_asked(study),
        "absent": absent,
        "commands": _commands(study),
        "environment": study.environment,
    }
    return render(TEMPLATES / "ablation.html", values | {"in_short": _in_short(study, details, shown)})


def _commands(study: Ablation) -> list[tuple[str, str]]:
    run = study.run.path
    found = [("make this page again", command("report", run))]
    if not study.finished or study.record["failed"]:
        return [("run what is missing", command("resume", run)), *found]
    best = AblationResult(run, study.record).best
    train = command("train", run / "arms" / best / "config.yaml")
    return [(f"train '{best}' on all training images", train), *found]


def _in_short(study: Ablation, details: Sequence[Mapping[str, Any]], shown: text.Unit) -> list[tuple[str, str, str]]:
    """(section id, title, sentence) each."""
    verdicts = [
        f"{word}: {', '.join(_told(arm, shown) for arm in found[:3])}{', …' if len(found) > 3 else ''}"
        for word in (*text.WORDS, UNFINISHED)
        if (found := [arm for arm in study.ordered if arm["verdict"] == word])
    ]
    told = [("result", "Result", "; ".join(verdicts) or "no arm could be compared")]
    for one in details[:1]:
        changed = one["changed"]
        told.append(
            (
                "changed",
                "Images",
                f"under '{one['name']}' {changed['better']:,} of {changed['images']:,} images are right more often "
                f"than under the base, and {changed['worse']:,} less often",
            )
        )
        if one["classes"] and study.finished:
            told.append(("classes", "Classes", one["classes"]["sentence"]))
    if costs := [arm["seconds"] / study.record["base"]["seconds"] for arm in study.ordered if _has_cost(study, arm)]:
        ends = " to ".join(dict.fromkeys(f"{cost:.2g}" for cost in (min(costs), max(costs))))
        told.append(("cost", "Cost", f"a training of an arm takes {ends} times as long as one of the base"))
    return told


def _has_cost(study: Ablation, arm: Mapping[str, Any]) -> bool:
    return bool(arm["seconds"] and study.record["base"]["seconds"])


def _told(arm: Mapping[str, Any], shown: text.Unit) -> str:
    if arm["difference"] is None:
        return f"'{arm['name']}'"
    return f"'{arm['name']}' {shown.difference(arm['difference'])} {shown.of_differences}".rstrip()


def _not_asked(study: Ablation) -> list[str]:
    """What the study says nothing about, in sentences."""
    record, test = study.record, len(study.plan.folds["test"])
    found = []
    if test:
        found.append(f"The test split: its {test:,} images are sealed, and no arm was chosen or judged by them.")
    others = [METRICS[name].label for name in records.HEADLINES if name != record["metric"]]
    found.append(f"Other metrics: only {METRICS[record['metric']].label} was tested, not {', '.join(others)}.")
    if len(record["arms"]) > 1:
        found.append("Arms together: each was compared with the base alone. Two that help may not help more together.")
    if record["margin"] is None:
        found.append("Equivalence: without a margin in the study's file, no arm can be called equivalent to the base.")
    if not record["choices"]:
        found.append(
            "Other hyperparameters: an arm keeps the base's learning rate and all else that it does not name, which "
            "may suit the base better (`choose` in the study's file tunes them for each arm)."
        )
    if record["seeds"] == 1:
        found.append(
            "Seeds: each fold was trained once by each arm, so that a fold's own luck is part of its difference."
        )
    if record["repeats"] == 1:
        found.append("Other divisions: the images were divided into folds once.")
    found.append(
        f"Other settings: {record['n_images']:,} images of {record['data']} and {record['epochs']} epochs. With more "
        "images, another network or longer training the arms may come out in another order."
    )
    return found
