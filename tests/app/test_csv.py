"""CSV files of features: every row, shares of 1, and nothing that a spreadsheet would run."""

import csv
import io
import json

import pyarrow as pa
import pytest

from sae.report import features as features_report
from sae.report import search
from tests.app.test_rows import table, wanted

__all__ = ["table"]


def test_csv_has_every_row_and_no_cell_that_a_spreadsheet_would_run(table):
    shown = features_report.features(table)
    text = features_report.csv(shown, features_report.PERCENTAGES).decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["feature"]) for row in rows] == [0, 1, 2, 3]
    assert [float(row["density"]) for row in rows] == pytest.approx(table["density"].to_pylist())
    assert [json.loads(row["fires most on"]) for row in rows] == shown["fires most on"].to_pylist()
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "@"))]


def test_texts_in_csv_get_an_apostrophe_where_a_spreadsheet_would_run_them_and_numbers_stay(table):
    texts = pa.chunked_array([["=1+1 cat", "+ the cat", "a cat", "-cat"]])
    shown = features_report.features(table).append_column("change", pa.array([-0.5, 0.5, 0.0, 1.0]))
    labels = {0: "@SUM(A1)", 1: "\t=2", 2: "-harmless", 3: "'=quoted"}
    notes = {0: "=cmd", 1: "plain", 2: "", 3: "'plain"}
    named = features_report.with_notes(features_report.with_labels(shown, labels), notes)
    found = search.ranked(wanted(named, texts, words="cat"), "cat", texts)
    rows = {
        int(row["feature"]): row
        for row in csv.DictReader(io.StringIO(features_report.csv(found).decode("utf-8")))
    }
    cells = [[rows[latent][name] for latent in range(4)] for name in ("passage", "label", "note", "change")]
    assert cells == [
        ["'=1+1 ▸cat◂", "'+ the ▸cat◂", "a ▸cat◂", "'-▸cat◂"],
        ["'@SUM(A1)", "⇥=2", "'-harmless", "''=quoted"],
        ["'=cmd", "plain", "", "'plain"],
        ["-0.5", "0.5", "0", "1"],
    ]
