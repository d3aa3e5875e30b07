"""CSV files of names: whatever a class or a file is called, readers of CSV get it back; formulas only where asked."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsmith.errors import UserError
from convsmith.files import FORMULA, as_csv
from convsmith.prediction.evaluation import prediction_rows, read_predictions
from convsmith.prediction.output import refuse_out

NAMES = st.text(st.one_of(st.sampled_from("\r\n\t\",;'=+-@ \u2028\x85\x1b"), st.characters(exclude_categories=["Cs"])))
TABLES = st.lists(NAMES, min_size=1, max_size=4, unique=True).flatmap(
    lambda keys: st.lists(st.tuples(*(NAMES for _ in keys)).map(lambda cells: dict(zip(keys, cells, strict=True))))
)


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


@given(TABLES)
def test_any_names_come_back(rows: list[dict[str, str]]) -> None:
    assert parsed(as_csv(rows)) == rows


@pytest.mark.parametrize("name", ["a\rb", "a\r\nb", "a\nb", '"a"', "a,b", " a ", "=1+1", "\r", "é\u2028"])
def test_another_reader_of_csv_agrees(name: str) -> None:
    text = as_csv([{"id": name, "predicted": "cat"}, {"id": "b", "predicted": name}])
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    strings = pyarrow.csv.ConvertOptions(column_types={"id": pa.string(), "predicted": pa.string()})
    table = pyarrow.csv.read_csv(io.BytesIO(text.encode()), parse_options=options, convert_options=strings)
    assert table.to_pydict() == {"id": [name, "b"], "predicted": ["cat", name]}


def test_predictions_of_hostile_classes_are_read_back(tmp_path: Path) -> None:
    classes = ("a\rb", "a\nb", '=cmd|"x"', "p_0")
    labels, logits = np.array([0, 1, 2, 3]), np.eye(4, dtype=np.float32)
    ids = ["\r", "x\r\ny", "=1", "\x1b"]
    file = tmp_path / "predictions-val.csv"
    file.write_text(as_csv(prediction_rows(ids, logits, classes, labels)), encoding="utf-8", newline="")
    found = read_predictions(file, classes)
    assert found.ids == tuple(ids)
    assert found.labels.tolist() == found.predicted.tolist() == labels.tolist()


@given(TABLES)
def test_a_safe_file_has_no_cell_that_a_spreadsheet_computes(rows: list[dict[str, str]]) -> None:
    for row, safe in zip(rows, parsed(as_csv(rows, safe=True)), strict=True):
        assert not any(cell.startswith(FORMULA) for cell in safe.values())
        assert {key: cell.removeprefix("'") for key, cell in safe.items()} == {
            key: cell.removeprefix("'") for key, cell in row.items()
        }


def test_numbers_stay_numbers_in_a_safe_file() -> None:
    assert as_csv([{"id": "-1", "value": -1.5}], safe=True) == "id,value\n'-1,-1.5\n"


@pytest.mark.parametrize("out", [None, Path("p.json")])
def test_csv_safe_needs_a_csv_file(out: Path | None) -> None:
    with pytest.raises(UserError, match=r"give --out FILE\.csv"):
        refuse_out(out, csv_safe=True)
