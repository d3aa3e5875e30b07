import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsmith.errors import UserError
from convsmith.records import METRICS, MONITORS, best_row, is_better

VALUE = st.sampled_from([0.0, 0.25, 0.5, 0.5 + 1e-9, 1.0])
ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(MONITORS, VALUE)), min_size=1, max_size=12)


@given(ROWS, st.sampled_from(MONITORS))
def test_the_best_epoch_is_first_by_its_metric_then_by_val_loss_then_by_time(rows, monitor):
    rows = [row | {"epoch": number} for number, row in enumerate(rows, start=1)]
    values = np.array([row[monitor] for row in rows])
    losses = np.array([row["val_loss"] for row in rows])
    if METRICS[monitor.removeprefix("val_")].higher_is_better:
        values = -values
    first = np.lexsort((np.arange(len(rows)), losses, values))[0]
    assert best_row(rows, monitor)["epoch"] == first + 1


def test_what_is_better_by_less_than_min_delta_is_not_better():
    before, after = {"val_accuracy": 0.5, "val_loss": 2.0}, {"val_accuracy": 0.53, "val_loss": 1.0}
    assert is_better("val_accuracy", after, before)
    assert not is_better("val_accuracy", after, before, min_delta=0.05)
    assert not is_better("val_accuracy", before | {"val_loss": 1.0}, before, min_delta=0.05)
    assert is_better("val_loss", after, before, min_delta=0.5)


def test_a_metric_that_an_older_run_has_not_recorded_is_named():
    rows = [{"epoch": 1, "val_loss": 0.4, "val_accuracy": 0.9}] * 2
    with pytest.raises(UserError, match=r"not recorded 'val_ece'.*has: val_loss, val_accuracy$"):
        best_row(rows, "val_ece")
