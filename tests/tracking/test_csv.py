import csv
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsmith.errors import UserError
from convsmith.records import MONITORS
from convsmith.tracking.csv import COLUMNS, MetricsCsv, cut_back, read


def row(epoch):
    return {name: epoch + index / 7 for index, name in enumerate(COLUMNS)} | {"epoch": epoch}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "läufe" / "metrics.csv"
    path.parent.mkdir()
    metrics = MetricsCsv(path)
    for epoch in range(1, 6):
        metrics.append(row(epoch))
    return path


def test_columns_are_those_of_the_design():
    assert ",".join(COLUMNS[:11]) == (
        "epoch,train_loss,train_accuracy,val_loss,val_accuracy,val_precision,val_recall,val_f1,"
        "learning_rate,seconds,images_per_second"
    )


def test_every_metric_of_the_val_split_has_a_column():
    assert set(MONITORS) <= set(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_rows_of_an_older_edition_get_the_present_header_and_keep_their_text(path):
    older = COLUMNS[:11]
    path.write_text(",".join(older) + "\n" + "1," + ",".join(["0.10000000000000001"] * 10) + "\n")
    assert cut_back(path, 1) == 1
    MetricsCsv(path).append(row(2))
    first, second = read(path)
    assert second == row(2)
    assert first == {"epoch": 1} | dict.fromkeys(older[1:], 0.1) | dict.fromkeys(COLUMNS[11:])
    assert "0.10000000000000001" in path.read_text()


def test_rows_come_back_exactly(path):
    assert read(path) == [row(epoch) for epoch in range(1, 6)]


def test_any_csv_reader_can_read_it(path):
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == list(COLUMNS)
    assert len(lines) == 6


@given(st.floats(allow_nan=False))
def test_floats_lose_nothing(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    MetricsCsv(path).append({"epoch": 1, "val_loss": value, "val_accuracy": np.float64(value)})
    (found,) = read(path)
    assert found["val_loss"] == found["val_accuracy"] == value
    assert found["val_f1"] is None


def test_nan_comes_back(tmp_path):
    MetricsCsv(tmp_path / "m.csv").append({"epoch": 1, "val_loss": math.nan})
    assert math.isnan(read(tmp_path / "m.csv")[0]["val_loss"])


def test_an_unknown_column_is_refused(path):
    with pytest.raises(AssertionError, match="vall_loss"):
        MetricsCsv(path).append({"epoch": 6, "vall_loss": 1.0})


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_half_written_row_is_left_out_and_cut(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert read(path) == [row(epoch) for epoch in range(1, 5)]
    assert cut_back(path, 5) == 4
    MetricsCsv(path).append(row(5))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("epochs", [0, 3, 5, 9])
def test_cut_back_keeps_the_first_rows(path, epochs):
    kept = min(epochs, 5)
    assert cut_back(path, epochs) == kept
    assert read(path) == [row(epoch) for epoch in range(1, kept + 1)]
    assert [file.name for file in path.parent.iterdir()] == ["metrics.csv"]


def test_after_a_cut_rows_go_on_without_a_second_header(path):
    whole = path.read_bytes()
    cut_back(path, 2)
    for epoch in range(3, 6):
        MetricsCsv(path).append(row(epoch))
    assert path.read_bytes() == whole


def test_a_half_written_header_is_written_again(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,train_lo")
    assert cut_back(path, 0) == 0
    MetricsCsv(path).append(row(1))
    assert read(path) == [row(1)]


def test_what_is_no_table_is_left_as_it_is(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(junk := b"\xff\0junk\n1,2\n3,4\n")
    with pytest.raises(UserError, match="not a table of numbers"):
        cut_back(path, 2)
    assert path.read_bytes() == junk


def test_nothing_to_cut(tmp_path):
    assert cut_back(tmp_path / "metrics.csv", 3) == 0
    assert not (tmp_path / "metrics.csv").exists()
