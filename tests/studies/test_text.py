import csv
import io
import re
from typing import get_args

import pytest

from convsmith import files
from convsmith.studies import text as wording
from convsmith.studies.comparison import forest
from convsmith.studies.statistics import Verdict


def arm(name, difference, ci95, p, verdict, folds=(1, 2, 3, 4, 5), chosen=(), **other):
    values = difference or 0.0
    return {
        "name": name,
        "changes": {"model.pool": name},
        "per_fold": [
            {"fold": fold, "repeat": 1, "seed": 0, "value": 0.7 + values, "difference": values, "seconds": 13.0}
            | {"chosen": chosen[fold - 1] if chosen else {}}
            for fold in folds
        ],
        "mean": None if difference is None else 0.7 + difference,
        "difference": difference,
        "ci95": ci95,
        "p": p,
        "p_holm": p,
        "effect_size": None,
        "bootstrap95": None if difference is None else [difference - 0.001, difference + 0.001],
        "verdict": verdict,
        "seconds": 13.0,
        "missing": 5 - len(folds),
    } | other


def record(*arms, **other):
    base = {"name": "base", "mean": 0.7, "std": 0.011, "seconds": 10.0}
    base["per_fold"] = [{"fold": fold, "repeat": 1, "seed": 0, "value": 0.7, "chosen": {}} for fold in range(1, 6)]
    return {
        "metric": "accuracy",
        "folds": 5,
        "repeats": 1,
        "seeds": 1,
        "margin": 0.005,
        "level": 0.95,
        "n_images": 10000,
        "data": "cifar10",
        "base": base,
        "arms": list(arms),
        "dropped": [],
        "failed": {},
    } | other


HELPS = arm("batch norm", 0.0312, [0.02, 0.042], 0.00001, "helps")
HURTS = arm("average", -0.02, [-0.03, -0.01], 0.0123, "hurts")
UNSURE = arm("dropout", 0.002, [-0.02, 0.024], 0.8, "no difference shown")
SAME = arm("gelu", 0.001, [-0.001, 0.003], 0.5, "equivalent")
ALL = record(UNSURE, HURTS, SAME, HELPS, detectable=0.014)


# The table


def test_rows_are_the_base_and_the_arms_from_the_best_difference_down():
    rows = wording.table(ALL)
    assert [row["arm"] for row in rows] == ["base", "batch norm", "dropout", "gelu", "average"]
    assert rows[1] == {
        "arm": "batch norm",
        "changes": "model.pool=batch norm",
        "mean accuracy (%)": "73.12",
        "difference (points)": "+3.12",
        "95% interval": "+2.00 to +4.20",
        "p (Holm)": "<0.0001",
        "verdict": "helps",
        "seconds": "13.0",
        "cost": "1.3x",
    }
    assert rows[4]["difference (points)"] == "-2.00"
    assert (rows[0]["difference (points)"], rows[0]["verdict"], rows[0]["cost"]) == ("", "base", "1.0x")


def test_of_losses_the_lowest_comes_first_and_in_nats():
    rows = wording.table(record(HURTS | {"difference": 0.1}, HELPS | {"difference": -0.1}, metric="loss"))
    assert [row["arm"] for row in rows] == ["base", "batch norm", "average"]
    assert rows[1]["difference (nats)"] == "-0.1000"
    assert rows[0]["mean loss (nats)"] == "0.7000"


def test_the_forest_plot_has_the_order_of_the_table():
    worse, better, unknown = (
        arm("worse", 0.1, None, 0.1, "hurts"),
        arm("better", -0.2, None, 0.1, "helps"),
        arm("unknown", None, None, None, "not computed"),
    )
    study = record(worse, unknown, better, metric="loss")
    figure = forest(study)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["better", "worse"]
    assert [row["arm"] for row in wording.table(study)][1:] == ["better", "worse", "unknown"]
    assert "Difference in loss (nats)" in figure.axes[0].get_xlabel()


def test_what_was_not_computed_is_empty_and_last_and_trainings_are_counted_where_some_are_missing():
    absent = arm("broken", None, None, None, "not computed", folds=(), seconds=None)
    rows = wording.table(record(absent, arm("late", 0.01, None, None, "no difference shown", folds=(1, 2, 4))))
    assert [row["trainings"] for row in rows] == ["5 of 5", "3 of 5", "0 of 5"]
    empty = {key for key, value in rows[2].items() if not value}
    assert empty == {"mean accuracy (%)", "difference (points)", "95% interval", "p (Holm)", "seconds", "cost"}
    assert "trainings" not in wording.table(ALL)[0]


def test_changes_name_what_was_chosen_for_the_folds():
    rates = [{"optim": {"lr": rate}} for rate in (0.1, 0.1, 0.03, 0.1, 0.03)]
    rows = wording.table(record(arm("adam", 0.0, [0, 0], 1.0, "no difference shown", chosen=rates)))
    assert rows[1]["changes"] == "model.pool=adam (chosen: optim.lr=0.1 or 0.03)"


def test_csv_gives_the_rows_back():
    odd = arm('a "quoted", name', 0.0, [0, 0], 1.0, "no difference shown", changes={"model.hidden": [64, 32]})
    rows = wording.table(record(odd, HELPS))
    assert list(csv.DictReader(io.StringIO(files.as_csv(rows)))) == rows


def test_latex_escapes_what_is_special_and_has_a_cell_for_each_column():
    odd = arm(r"50%_of $x^2$ & {a} \b #1 ~ [c]", -0.01, [-0.02, 0.0], 0.04, "hurts")
    text = wording.as_latex(wording.table(record(odd)), "100% of_it")
    assert r"50\%\_of \$x\textasciicircum{}2\$ \& \{a\} \textbackslash{}b \#1 \textasciitilde{} {[}c] &" in text
    assert r"\caption{100\% of\_it}" in text
    assert "$-$1.00 & $-$2.00 to +0.00" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 3
    columns = re.search(r"\\begin{tabular}{([lr]+)}", text)[1]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns) - 1}
    assert columns == "llrrrrlrr"
    assert text.count(r"\begin") == text.count(r"\end") == 2


# In words


def test_there_are_words_for_every_verdict():
    assert set(wording.WORDS) == set(get_args(Verdict))


def test_the_conclusion_says_what_helps_and_hurts_and_by_how_much():
    lines = wording.conclusion(ALL).splitlines()
    assert lines[0] == "The base reaches a mean accuracy of 70.00% (standard deviation 1.10 between folds)."
    assert lines[1:5] == [
        "'batch norm' helps: +3.12 percentage points (95% interval +2.00 to +4.20; p < 0.0001 after Holm's "
        "correction).",
        "'average' hurts: -2.00 percentage points (95% interval -3.00 to -1.00; p = 0.0123 after Holm's correction).",
        "'gelu' is equivalent to the base: +0.10 percentage points (95% interval -0.10 to +0.30; p = 0.5000 after "
        "Holm's correction). The margin is 0.50 percentage points either way.",
        "No difference was shown for 'dropout': +0.20 percentage points (95% interval -2.00 to +2.40; p = 0.8000 after "
        "Holm's correction).",
    ]
    assert lines[-1].startswith("These results hold for 10,000 images of cifar10, this base and this training budget;")


@pytest.mark.parametrize("study", [ALL, record(UNSURE), record(UNSURE, margin=None)])
def test_no_difference_shown_is_never_called_no_difference(study):
    text = wording.conclusion(study)
    assert len(re.findall("no difference", text, re.I)) == text.count("No difference was shown for")
    assert "This does not mean that there is none" in text


def test_the_conclusion_says_what_could_have_been_detected_where_that_is_known():
    detected = "would have detected with a probability of 80% is about 1.40 percentage points."
    assert detected in wording.conclusion(ALL)
    assert "too small for this study to detect" in wording.conclusion(record(UNSURE))
    assert "That does not say" not in wording.conclusion(record(HELPS))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (SAME | {"ci95": [0.0005, 0.0015], "p_holm": 0.01}, "there is a difference, but it is smaller than that."),
        (SAME | {"ci95": [-0.001, 0.0052]}, "Two one-sided tests at 0.05 require that the 90% interval lie within it."),
        (UNSURE | {"ci95": [0.001, 0.02], "p_holm": 0.08}, "On its own, the interval excludes zero; among 2 compar"),
        (HELPS | {"bootstrap95": [-0.001, 0.05]}, "The bootstrap over images does not confirm this: -0.10 to +5.00."),
        (
            arm("plateau", 0.0, [0, 0], 1.0, "equivalent"),
            "+0.00 percentage points on every fold: check whether 'plateau' has any effect at all.",
        ),
        (
            UNSURE | {"ci95": None, "p_holm": None},
            "it is the same on every fold, so that no test can distinguish it from",
        ),
    ],
)
def test_the_conclusion_adds_what_a_verdict_leaves_out(found, said):
    assert said in wording.conclusion(record(found, HURTS))
    assert said not in wording.conclusion(ALL)


def test_missing_folds_are_named():
    late = arm("late", 0.01, [-0.1, 0.1], 0.9, "no difference shown", folds=(1, 2, 4))
    broken = arm("broken", None, None, None, "not computed", folds=())
    for text in (wording.conclusion(record(late, broken)), wording.methods(record(late, broken))):
        assert "For 'late', 2 trainings are missing or unpaired, and therefore left out (folds 3, 5)" in text
        assert "For 'broken', 5 trainings are missing" in text
    assert "'broken' could not be compared: too few of its folds have finished." in wording.conclusion(record(broken))
    study = record(late, broken, failed={"broken": "its predictions are gone"})
    assert "'broken' could not be compared: its predictions are gone." in wording.conclusion(study)
    assert "missing" not in wording.conclusion(ALL)


def test_missing_folds_are_named_with_their_repeat_and_seeds_are_counted():
    late = arm("late", 0.01, [-0.1, 0.1], 0.9, "no difference shown", missing=1)
    places = [(fold, repeat, seed) for repeat in (1, 2) for fold in range(1, 6) for seed in (0, 1)]
    places.remove((3, 2, 1))
    late["per_fold"] = [{"fold": fold, "repeat": repeat, "seed": seed, "chosen": {}} for fold, repeat, seed in places]
    study = record(late, repeats=2, seeds=2)
    assert (
        "For 'late', 1 training is missing or unpaired, and therefore left out (fold 3 of repeat 2)"
        in wording.methods(study)
    )


def test_a_base_without_a_finished_fold_is_said():
    base = {"name": "base", "mean": None, "std": None, "seconds": None, "per_fold": []}
    study = record(arm("a", None, None, None, "not computed", folds=()), base=base)
    assert wording.conclusion(study).startswith("The base has no finished fold, so nothing can be compared with it.")
    assert wording.table(study)[1]["cost"] == ""


def test_arms_that_were_given_up_are_named_and_not_counted_as_tests():
    study = record(HELPS, HURTS | {"verdict": "given up", "p_holm": None}, dropped={"average": 2})
    for text in (wording.conclusion(study), wording.methods(study)):
        assert "These arms were given up early by successive halving and not compared: 'average'." in text
        assert "p-values too small" in text
    assert "We compared 2 variants" in wording.methods(study)
    assert "adjusted for 1 comparison by" in wording.methods(study)
    assert "'average' hurts" not in wording.conclusion(study)
    assert "could not be compared" not in wording.conclusion(study)


def test_methods_of_a_plain_study():
    text = wording.methods(ALL)
    assert text.startswith(
        "We compared 4 variants with a base configuration by stratified 5-fold cross-validation on 10,000 images of "
        "cifar10. All configurations shared the same folds and seeds"
    )
    for said in [
        "inner validation part of the training folds",
        "the test split was not used",
        "corrected resampled t-test (Nadeau and Bengio, 2003)",
        "1/4 (the inner validation part counts as training), to the factor 1/n of the variance of the mean. The p",
        "adjusted for 4 comparisons by Holm's method (Holm, 1979) at a level of 0.05",
        "Equivalence within 0.50 percentage points either way",
        "percentile bootstrap intervals over images",
    ]:
        assert said in text
    paragraph, references = text.split("\n\nReferences\n")
    assert "\n" not in paragraph
    names = [line.split(",")[0] for line in references.splitlines()]
    assert names == ["Nadeau", "Holm", "Schuirmann", "Efron"]
    assert all(name in paragraph for name in names)


def test_methods_tell_of_the_test_by_image_what_it_took_into_account():
    text = wording.methods(record(HELPS, UNSURE, test="images", metric="f1", margin=None))
    paragraph, references = text.split("\n\nReferences\n")
    names = [line.split(",")[0] for line in references.splitlines()]
    assert [name for name in names if name != "Efron"] == ["Bayle", "Satterthwaite", "Hampel", "Holm"]
    assert all(name in paragraph for name in names)
    assert "that of the middle one of the variants" in paragraph
    assert "t-test" not in paragraph
    assert "groups" not in text
    assert "came in 30 groups" in wording.methods(record(HELPS, test="images", n_groups=30))
    alone = wording.methods(record(HELPS, test="images"))
    assert "middle one" not in alone
    assert "Hampel" not in alone


def test_methods_leave_out_what_was_not_done():
    text = wording.methods(record(UNSURE | {"bootstrap95": None}, margin=None))
    for word in (
        "Bouckaert",
        "Schuirmann",
        "Equivalence",
        "bootstrap",
        "Efron",
        "repeated",
        "averaged",
        "chosen",
        "missing",
    ):
        assert word not in text
    assert "1 variant with" in text


def test_methods_name_repeats_seeds_and_what_was_chosen():
    adam = arm("adam", 0.0, [0, 0], 1.0, "no difference shown", chosen=[{"optim": {"lr": 0.1}}] * 5)
    text = wording.methods(record(adam, repeats=3, seeds=2))
    assert "5-fold cross-validation, repeated 3 times with new folds each time, on" in text
    assert "of the variance of the mean, with n = 15 (Bouckaert and Frank, 2004). The" in text
    assert "\nBouckaert, R. R. and Frank" in text
    assert "trained with 2 seeds, whose scores were averaged" in text
    assert "For each configuration and fold optim.lr was chosen separately" in text
