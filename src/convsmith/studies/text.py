"""An ablation's result as a table, a methods paragraph and a conclusion, from its record only. No statistics here.

The record is that of ablation.json: metric, folds, repeats, seeds (their number), margin (or None), level, n_images,
n_groups (None where images do not belong together), data, base {name, mean, std, seconds, per_fold}, arms, dropped (the
names of arms given up early), failed (why trainings failed and arms could not be compared, by name), and, where it was
computed, detectable: the smallest difference that the study would have called different with a probability of 80%. An
arm has name, changes {key: value}, per_fold [{fold, repeat, seed, value, difference, seconds, chosen}] of the pairs,
mean, difference, ci95 [low, high], p, p_holm, effect_size, images_std and trainings_std (the components of the test by
image), bootstrap95 [low, high] (beside the test over folds), verdict (none of the usual four where it was not
compared), seconds, missing (the number of trainings), stopped (by which look, why, after how many trainings; None where
there were no looks). What could not be computed is None. Values are in the metric's own unit (an accuracy of 0.7);
`seconds` are those of one training.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from convsmith.events import STOPPED
from convsmith.records import METRICS, test_of
from convsmith.terminal import listed, plural, visible

Record = Mapping[str, Any]
Rows = Sequence[Mapping[str, str]]

TEXT_COLUMNS = {"arm", "changes", "verdict"}
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "[": "{[}",  # after the end of a row, LaTeX would take it for an optional argument
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
WORDS = {
    "helps": "'{}' helps",
    "hurts": "'{}' hurts",
    "equivalent": "'{}' is equivalent to the base",
    "no difference shown": "No difference was shown for '{}'",
}
CITED = {
    "Bayle": "Bayle, P., Bayle, A., Janson, L. and Mackey, L. (2020). Cross-validation confidence intervals for test "
    "error. Advances in Neural Information Processing Systems 33, 16339-16350.",
    "Satterthwaite": "Satterthwaite, F. E. (1946). An approximate distribution of estimates of variance components. "
    "Biometrics Bulletin 2, 110-114.",
    "Hampel": "Hampel, F. R. (1974). The influence curve and its role in robust estimation. Journal of the American "
    "Statistical Association 69, 383-393.",
    "Lan": "Lan, K. K. G. and DeMets, D. L. (1983). Discrete sequential boundaries for clinical trials. Biometrika 70, "
    "659-663.",
    "Kim": "Kim, K. and DeMets, D. L. (1987). Design and analysis of group sequential tests based on the type I error "
    "spending rate function. Biometrika 74, 149-154.",
    "Liu": "Liu, Q. and Anderson, K. M. (2008). On adaptive extensions of group sequential trials for clinical "
    "investigations. Journal of the American Statistical Association 103, 1621-1630.",
    "Jennison": "Jennison, C. and Turnbull, B. W. (1989). Interim analyses: the repeated confidence interval approach. "
    "Journal of the Royal Statistical Society B 51, 305-361.",
    "Nadeau": "Nadeau, C. and Bengio, Y. (2003). Inference for the generalization error. Machine Learning 52, 239-281.",
    "Bouckaert": "Bouckaert, R. R. and Frank, E. (2004). Evaluating the replicability of significance tests for "
    "comparing learning algorithms. Advances in Knowledge Discovery and Data Mining (PAKDD), 3-12.",
    "Holm": "Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of "
    "Statistics 6, 65-70.",
    "Schuirmann": "Schuirmann, D. J. (1987). A comparison of the two one-sided tests procedure and the power approach "
    "for assessing the equivalence of average bioavailability. Journal of Pharmacokinetics and Biopharmaceutics 15, "
    "657-680.",
    "Efron": "Efron, B. and Tibshirani, R. J. (1993). An Introduction to the Bootstrap. Chapman and Hall.",
}

WORDS_OF_UNIT = {  # of values, of differences, of differences written out
    "share": ("%", "points", "percentage points"),
    "nats": ("nats", "nats", "nats"),
    "score": ("", "", ""),
}


@dataclass(frozen=True)
class Unit:
    """How the values of a metric are shown: multiplied by `scale`, with `digits` decimal places."""

    scale: float
    digits: int
    of_values: str
    of_differences: str
    written_out: str
    higher_is_better: bool

    def value(self, number: float | None) -> str:
        return "" if number is None else f"{self.scale * number:.{self.digits}f}"

    def difference(self, number: float | None) -> str:
        return "" if number is None else f"{self.scale * number:+.{self.digits}f}"

    def words(self, number: str) -> str:
        """A number with its unit, for use in a sentence."""
        return f"{number} {self.written_out}".rstrip()

    def interval(self, ends: Sequence[float] | None) -> str:
        return "" if ends is None else f"{self.difference(ends[0])} to {self.difference(ends[1])}"


def unit(metric: str) -> Unit:
    """Percent and percentage points for a share, nats for the loss; a score has no unit."""
    known = METRICS[metric]
    return Unit(known.scale, known.digits, *WORDS_OF_UNIT[known.unit], known.higher_is_better)


def table(record: Record) -> list[dict[str, str]]:
    """The base's row, then one row per arm, the best difference first; column names include the units.

    The base's `changes` are its own values of the keys that arms change. Cost is the seconds of one training relative
    to the base's. There is a column of trainings where some are missing.
    """
    shown, base = unit(record["metric"]), record["base"]
    wanted = record["folds"] * record["repeats"] * record["seeds"]
    rows = []
    for arm in [base, *ranked(record)]:
        row = {
            "arm": arm["name"],
            "changes": _changes(arm),
            heading(f"mean {METRICS[record['metric']].label}", shown.of_values): shown.value(arm["mean"]),
            heading("difference", shown.of_differences): shown.difference(arm.get("difference")),
            f"{_percent(record['level'])} interval": shown.interval(arm.get("ci95")),
            "p (Holm)": p_value(arm.get("p_holm")),
            "verdict": "base" if arm is base else arm["verdict"],
            "seconds": "" if arm["seconds"] is None else f"{arm['seconds']:.1f}",
            "cost": _times(arm["seconds"] / base["seconds"]) if arm["seconds"] and base["seconds"] else "",
        }
        if any(len(arm["per_fold"]) < wanted for arm in (base, *record["arms"])):
            row["trainings"] = f"{len(arm['per_fold'])} of {wanted}"
        rows.append(row)
    return rows


def ranked(record: Record) -> list[Record]:
    """The arms, the best difference first, and those without one last."""
    sign = METRICS[record["metric"]].sign
    return sorted(record["arms"], key=lambda arm: (arm["difference"] is None, -sign * (arm["difference"] or 0.0)))


def by_importance(rows: Rows) -> list[str]:
    """The columns of `table` that a narrow terminal should show, the most important one first."""
    _, _, mean, difference, interval, p, verdict, *rest = rows[0]
    return [difference, interval, verdict, mean, p, *rest]


def as_latex(rows: Rows, caption: str) -> str:
    """The rows of `table` as a LaTeX table, for a document that loads booktabs."""
    head, *lines = (" & ".join(map(_latex, cells)) + r" \\" for cells in (rows[0], *(row.values() for row in rows)))
    alignment = "".join("l" if name in TEXT_COLUMNS else "r" for name in rows[0])
    body = "\n    ".join([r"\toprule", head, r"\midrule", *lines, r"\bottomrule"])
    return rf"""% for a document with \usepackage{{booktabs}}
\begin{{table}}
  \centering
  \caption{{{_latex(caption)}}}
  \begin{{tabular}}{{{alignment}}}
    {body}
  \end{{tabular}}
\end{{table}}
"""


def methods(record: Record) -> str:
    """A paragraph for the methods section of a paper, and the works that it cites."""
    shown, arms, alpha = unit(record["metric"]), record["arms"], f"{1 - record['level']:.2g}"
    folds, repeats, seeds = record["folds"], record["repeats"], record["seeds"]
    text = f"We compared {plural(len(arms), 'variant')} with a base configuration by stratified {folds}-fold "
    text += "cross-validation"
    text += f", repeated {repeats} times with new folds each time," if repeats > 1 else ""
    text += f" on {record['n_images']:,} images of {record['data']}. "
    text += f"Every fold was trained with {seeds} seeds, whose scores were averaged. " if seeds > 1 else ""
    text += (
        "All configurations shared the same folds and seeds, so that differences are paired. Decisions during training "
        "(when to stop, which epoch to keep) were made on an inner validation part of the training folds; each "
        "held-out fold was scored once, after training, and the test split was not used. "
    )
    if chosen := sorted({key for arm in arms for key in _chosen(arm)}):
        text += f"For each configuration and fold {listed(chosen)} {'was' if len(chosen) == 1 else 'were'} "
        text += "chosen separately on the inner validation part, with the same small budget for all. "
    by_image = test_of(record) == "images"
    text += _test_by_image(record) if by_image else _test_over_folds(record)
    text += (
        f"The p-values were adjusted for {plural(_tested(record), 'comparison')} by Holm's method (Holm, 1979) at a "
        f"level of {alpha}. The {_percent(record['level'])} confidence intervals use the same variance and are not "
        f"adjusted for that. "
    )
    if by_image:
        cited = ["Bayle", "Satterthwaite", *([] if METRICS[record["metric"]].mean else ["Hampel"]), "Holm"]
    else:
        cited = ["Nadeau", *(["Bouckaert"] if repeats > 1 else []), "Holm"]
    if record["margin"] is not None:
        cited.append("Schuirmann")
        text += (
            f"Equivalence within {shown.words(shown.value(record['margin']))} either way was tested by two "
            f"one-sided tests (Schuirmann, 1987) with the same variance, each at {alpha} and not adjusted; a variant "
            f"that passes is called equivalent, whether or not its difference is significant. "
        )
    if any(arm["bootstrap95"] for arm in arms):
        cited.append("Efron")
        text += (
            "As a check, percentile bootstrap intervals over images were computed for the paired differences of the "
            "out-of-fold predictions (Efron and Tibshirani, 1993); they exclude the variation between trainings. "
        )
    if record.get("looks"):
        cited += ["Lan", "Kim", "Liu", "Jennison"]
        text += (
            f"The study was looked at {plural(record['looks'], 'time')} while it ran. The level was spent over the "
            "looks (Lan and DeMets, 1983) as the cube of the share of the planned trainings (Kim and DeMets, 1987). "
            "The p-values (Liu and Anderson, 2008) and confidence intervals (Jennison and Turnbull, 1989) hold over "
            "all looks. "
        )
    text += " ".join([*_missing(record), *_dropped(record), *_stopped(record)])
    return text.strip() + "\n\nReferences\n" + "\n".join(CITED[name] for name in cited) + "\n"


def _test_by_image(record: Record) -> str:
    """The sentences on the test of `variance`."""
    metric = METRICS[record["metric"]]
    groups = record.get("n_groups")
    of_groups = f" Images came in {groups:,} groups, which were what varies." if groups else ""
    text = (
        f"Differences in {metric.label} were tested two-sided by image.{of_groups} "
        "The variance of the mean difference is that between images of their paired differences (Bayle et al., 2020), "
        "averaged over the trainings that held an image out, plus the excess noise of trainings, by which the folds "
        "vary beyond what their images explain; its degrees of freedom follow Satterthwaite (1946). "
    )
    if _tested(record) > 1:
        text += (
            "The few folds of one variant say little about this noise: where it was smaller, relative to what images "
            "explain, than that of the middle one of the variants, the latter's was taken. "
        )
    if not metric.mean:
        text += f"For this, {metric.label} was linearised about its value in each fold (Hampel, 1974). "
    return text + (
        "The target is the expected difference of nets trained anew, on training sets of this size and with new seeds; "
        "the part of the variance between training sets that all folds share cannot be seen in one study. "
    )


def _test_over_folds(record: Record) -> str:
    """The sentence on the test of `statistics`, by which studies of older versions go on."""
    folds, repeats = record["folds"], record["repeats"]
    of_repeats = f", with n = {folds * repeats} (Bouckaert and Frank, 2004)" if repeats > 1 else ""
    return (
        f"Differences in {METRICS[record['metric']].label} were tested over folds, as in the version that started the "
        "study, with the two-sided corrected resampled t-test (Nadeau and "
        "Bengio, 2003), which allows for the overlap of the training sets by adding the ratio of test to training "
        f"images, 1/{folds - 1} (the inner validation part counts as training), to the factor 1/n of the variance of "
        f"the mean{of_repeats}. "
    )


def conclusion(record: Record) -> str:
    """What the study shows and what it does not, in plain words, one statement per line."""
    shown, base = unit(record["metric"]), record["base"]
    if base["mean"] is None:
        lines = ["The base has no finished fold, so nothing can be compared with it."]
    else:
        spread = "" if base["std"] is None else f" (standard deviation {shown.value(base['std'])} between folds)"
        mean = f"{shown.value(base['mean'])}{shown.of_values}"
        lines = [f"The base reaches a mean {METRICS[record['metric']].label} of {mean}{spread}."]
    for verdict, words in WORDS.items():
        found = [arm for arm in record["arms"] if arm["verdict"] == verdict]
        lines += [f"{words.format(visible(arm['name']))}: {_finding(record, arm)}" for arm in found]
    if any(arm["verdict"] == "no difference shown" for arm in record["arms"]):
        line = "This does not mean that there is none: "
        if (detectable := record.get("detectable")) is None:
            line += "there may be one that is too small for this study to detect."
        else:
            line += "the smallest difference that this study would have detected with a probability of 80% is about "
            line += f"{shown.words(shown.value(detectable))}."
        lines.append(line)
    untested = [arm for arm in record["arms"] if arm["verdict"] not in WORDS and arm["name"] not in record["dropped"]]
    for arm in untested:
        why = visible(record["failed"].get(arm["name"], "too few of its folds have finished"))
        lines.append(f"'{visible(arm['name'])}' could not be compared: {why}.")
    lines += [*_missing(record), *_dropped(record), *_stopped(record)]
    if test_of(record) == "folds":
        lines.append("The test is that over folds, with which older versions started a study.")
    lines.append(
        f"These results hold for {record['n_images']:,} images of {record['data']}, this base and this training "
        f"budget; with other data, another base or longer training they may differ."
    )
    return "\n".join(lines) + "\n"


def _finding(record: Record, arm: Record) -> str:
    """The difference with its interval and p-value, and the caveats that the arm's verdict needs."""
    shown, alpha = unit(record["metric"]), 1 - record["level"]
    text = shown.words(shown.difference(arm["difference"]))
    if arm["ci95"] is None:
        return text + "; it is the same on every fold, so that no test can distinguish it from chance."
    low, high = arm["ci95"]
    if low == high == 0:
        return text + f" on every fold: check whether '{visible(arm['name'])}' has any effect at all."
    text += f" ({_percent(record['level'])} interval {shown.interval(arm['ci95'])}"
    text += f"; p = {p_value(arm['p_holm'])} after Holm's correction).".replace("= <", "< ")
    if arm["verdict"] == "equivalent":
        text += f" The margin is {shown.words(shown.value(record['margin']))} either way"
        text += ": there is a difference, but it is smaller than that." if arm["p_holm"] < alpha else "."
        if max(-low, high) >= record["margin"]:
            within = _percent(1 - 2 * alpha)
            text += f" Two one-sided tests at {alpha:.2g} require that the {within} interval lie within it."
    elif arm["verdict"] == "no difference shown" and (low > 0 or high < 0):
        number = plural(_tested(record), "comparison")
        text += f" On its own, the interval excludes zero; among {number} that is not enough."
    elif arm["verdict"] in ("helps", "hurts") and (check := arm["bootstrap95"]) and check[0] <= 0 <= check[1]:
        text += f" The bootstrap over images does not confirm this: {shown.interval(check)}."
    return text


def _missing(record: Record) -> Iterator[str]:
    """A sentence for each arm with missing trainings, with the folds that lack them."""
    positions = list(product(range(1, record["repeats"] + 1), range(1, record["folds"] + 1)))
    for arm in record["arms"]:
        if arm["name"] in record["dropped"] or not arm["missing"]:
            continue
        there = Counter((entry["repeat"], entry["fold"]) for entry in arm["per_fold"])
        number = arm["stopped"]["trainings"] if arm.get("stopped") else len(positions) * record["seeds"]
        wanted = Counter(positions[index % len(positions)] for index in range(number))
        lacking = [position for position in positions if there[position] < wanted[position]]
        of_repeat = " of repeat {}" if record["repeats"] > 1 else ""
        names = ", ".join(f"{fold}{of_repeat.format(repeat)}" for repeat, fold in lacking)
        verb, folds = "is" if arm["missing"] == 1 else "are", "fold" if len(lacking) == 1 else "folds"
        number = f"{plural(arm['missing'], 'training')} {verb}"
        yield f"For '{visible(arm['name'])}', {number} missing or unpaired, and therefore left out ({folds} {names})."


def _dropped(record: Record) -> Iterator[str]:
    if names := record["dropped"]:
        yield (
            f"These arms were given up early by successive halving and not compared: {_names(names)}. The arms that "
            f"were kept were chosen on images that their tests use again, so their differences may be optimistic and "
            f"their p-values too small."
        )


def _stopped(record: Record) -> Iterator[str]:
    """Which arms a look stopped before the end of the plan, and what that means for their numbers."""
    total = record["folds"] * record["repeats"] * record["seeds"]
    early = [arm for arm in record["arms"] if (stop := arm.get("stopped")) and stop["trainings"] < total]
    for because, why in STOPPED.items():
        if found := [arm for arm in early if arm["stopped"]["because"] == because]:
            names = ", ".join(f"'{visible(arm['name'])}' after {arm['stopped']['trainings']}" for arm in found)
            yield f"Stopped before all {total} trainings ({why}): {names}."
    if early:
        yield (
            f"The {_percent(record['level'])} intervals and the p-values of arms that stopped early hold whenever they "
            f"stop, and so are wider and larger than those of a test that was planned for that size."
        )


def heading(name: str, of_what: str) -> str:
    """``accuracy (%)``, or the name alone where there is no unit."""
    return f"{name} ({of_what})" if of_what else name


def _times(ratio: float) -> str:
    return f"{ratio:.{1 if ratio >= 0.1 else 3}f}x"


def _tested(record: Record) -> int:
    """The number of arms that Holm's correction counts."""
    return sum(arm["name"] not in record["dropped"] for arm in record["arms"])


def _changes(arm: Record) -> str:
    changes = ", ".join(f"{key}={value}" for key, value in _flat(arm.get("changes", {})))
    chosen = ", ".join(f"{key}={' or '.join(values)}" for key, values in _chosen(arm).items())
    return changes + (f" (chosen: {chosen})" if chosen else "")


def _chosen(arm: Record) -> dict[str, list[str]]:
    """The hyperparameters that were chosen for the arm, and the distinct values that its folds got."""
    found: dict[str, list[str]] = {}
    for key, value in (pair for entry in arm["per_fold"] for pair in _flat(entry["chosen"])):
        values = found.setdefault(key, [])
        values += [value] if value not in values else []
    return found


def _flat(changes: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """``{"optim": {"lr": 0.1}}`` and ``{"optim.lr": 0.1}`` alike give ``("optim.lr", "0.1")``."""
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _latex(text: str) -> str:
    escaped = "".join(LATEX.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)  # a minus sign, where LaTeX would set a hyphen


def p_value(p: float | None) -> str:
    return "" if p is None else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _names(names: Iterable[str]) -> str:
    """In quotes: an arm may be called 'no dropout'."""
    return ", ".join(f"'{visible(name)}'" for name in names)


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
