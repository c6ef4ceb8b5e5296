"""Files of predictions: tables that say what they change, and Parquet with the types of the input."""

from __future__ import annotations

import csv
import datetime
import io
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from bertcli.errors import DataError
from bertcli.inference.prediction_formats import TABLE_OPTIONS, Chunk, ParquetWriter, TextWriter

CONTROL_TEXTS = ["a\x00b", "a\x85b", "a\u2028b", "\x1b[31m", "a\u202eb"]
FORMULA_TEXTS = ["=1+1", "+1", "- a dash", "@a"]


@pytest.mark.parametrize("format_name", ["csv", "tsv"])
def test_nan_in_a_kept_column_is_not_counted_as_a_changed_cell(format_name: str) -> None:
    file, writer = io.StringIO(), TextWriter(format_name)
    writer.write([[({"text": "a", "price": math.nan}, {"label": "x"})]], file)
    assert writer.warning is None
    assert "nan" in file.getvalue()


@pytest.mark.parametrize("format_name", ["csv", "tsv"])
def test_tables_say_how_many_texts_they_escape(format_name: str) -> None:
    writer = TextWriter(format_name)
    writer.write([[({"text": text}, {"label": "a"})] for text in (*CONTROL_TEXTS, *FORMULA_TEXTS, "f")], io.StringIO())
    assert str(writer.warning).startswith("cells that differ from the original text: 9; ")


def test_dates_and_bytes_are_text_in_json_lines_at_any_depth() -> None:
    file, day = io.StringIO(), datetime.date(2020, 1, 2)
    TextWriter("jsonl").write([[({"day": day, "all": [{"day": day}], "raw": b"a"}, {"score": math.nan})]], file)
    assert file.getvalue() == (
        '{"day": "2020-01-02", "all": [{"day": "2020-01-02"}], "raw": "b\'a\'", "score": null}\n'
    )


@pytest.mark.parametrize("format_name", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (["a", "b"], "a,b"),
        ([["a", "b"], []], '[["a", "b"], []]'),
        ([("k", 1)], '[["k", 1]]'),  # a map in Parquet
        ([None, {"a": 1}], '[null, {"a": 1}]'),
    ],
)
def test_lists_of_lists_are_json_in_tables(format_name: str, value: list[Any], cell: str) -> None:
    writer, file = TextWriter(format_name), io.StringIO()
    writer.write([[({"list": value}, {"label": "x"})]], file)
    reader = csv.DictReader(io.StringIO(file.getvalue()), **TABLE_OPTIONS[format_name])
    assert [row["list"] for row in reader] == [cell]


def test_parquet_text_that_was_parsed_as_a_list_is_written_as_one() -> None:
    rows = [({"choices": ["a", "b"], "text": text}, {"choice": 0}) for text in "xy"]
    ParquetWriter({"choices": pyarrow.string(), "text": pyarrow.large_string()}).write_file([rows], Path("a"), 0)
    schema = pyarrow.parquet.read_schema("a")
    assert schema.field("choices").type == pyarrow.list_(pyarrow.string())
    assert schema.field("text").type == pyarrow.large_string()


TYPES: dict[str, pyarrow.DataType] = {
    "n": pyarrow.int8(),
    "x": pyarrow.float32(),
    "price": pyarrow.decimal128(9, 2),
    "day": pyarrow.date32(),
    "time": pyarrow.timestamp("ns", "UTC"),
    "raw": pyarrow.binary(),
    "kind": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    "list": pyarrow.list_(pyarrow.int16()),
    "map": pyarrow.map_(pyarrow.string(), pyarrow.int8()),
    "object": pyarrow.struct({"a": pyarrow.int8()}),
    "label": pyarrow.int64(),
}


def test_parquet_keeps_the_types_and_values_of_the_input() -> None:
    values: dict[str, list[Any]] = {
        "n": [1, None],
        "x": [0.1, math.inf],
        "price": [None, "7.10"],
        "day": [datetime.date(2020, 1, 2), None],
        "time": [1_700_000_000_123_456_789, None],
        "raw": [b"\xff", b""],
        "kind": ["a", None],
        "list": [[], [None, 1]],
        "map": [[("a", 1)], None],
        "object": [{"a": 1}, None],
        "label": [2**60, 1],
    }
    table = pyarrow.table(
        {
            name: pyarrow.array(values[name]).cast(kind) if name == "price" else pyarrow.array(values[name], kind)
            for name, kind in TYPES.items()
        }
    )
    rows = [{**row, "input_label": row.pop("label")} for row in table.to_pylist()]
    prediction = {"label": "good", "probabilities": {"bad": 0.25, "good": 0.75}, "tags": ["A"], "entities": []}
    writer = ParquetWriter(TYPES)
    assert writer.write_file([[(rows[0], prediction)], [(rows[1], prediction)]], Path("out.parquet"), 0) == 2
    found = pyarrow.parquet.read_table("out.parquet")
    kept = table.rename_columns([*list(TYPES)[:-1], "input_label"])
    assert found.select(kept.column_names).equals(kept)
    expected = {"label": "good", "probability_bad": 0.25, "probability_good": 0.75, "tags": ["A"], "entities": []}
    assert found.drop_columns(kept.column_names).to_pylist() == [expected] * 2


def part(*rows: dict[str, Any]) -> list[Chunk]:
    return [[(row, {"entities": row.pop("entities", [])}) for row in rows]]


def test_parquet_parts_whose_columns_are_empty_or_missing_are_joined() -> None:
    writer, entity = ParquetWriter({}), {"label": "PER", "start": 0}
    paths = [Path("0"), Path("1"), Path("2")]
    writer.write_file(part({"a": None, "n": 1}), paths[0], 0)
    writer.write_file(part({"a": "x", "n": 1.5, "entities": [entity]}, {"a": None}), paths[1], 1)
    writer.write_file(part({"b": [1]}), paths[2], 3)
    writer.join(paths, Path("all.parquet"))
    file = pyarrow.parquet.ParquetFile("all.parquet")
    assert file.num_row_groups == 3
    nothing = {"a": None, "n": None, "entities": [], "b": None}
    assert file.read().to_pylist() == [
        nothing | {"n": 1.0},
        nothing | {"a": "x", "n": 1.5, "entities": [entity]},
        nothing,
        nothing | {"b": [1]},
    ]


def test_parquet_columns_with_values_of_several_types_are_refused_when_they_appear() -> None:
    with pytest.raises(DataError, match=r"need the same type: column 'a': .*; write JSON Lines \(--format"):
        ParquetWriter({}).write_file(part({"a": 1}, {"a": "x"}), Path("out.parquet"), 0)
    with pytest.raises(DataError, match=r"need the same type: Cannot write struct type 'a' with no child"):
        ParquetWriter({}).write_file(part({"a": {}}), Path("out.parquet"), 0)
    writer = ParquetWriter({})
    writer.write_file(part({"a": 1}), Path("out.parquet"), 0)
    with pytest.raises(DataError, match=r"Field a has incompatible types: int64 vs string"):
        writer.write_file(part({"a": "x"}), Path("out.parquet"), 1)
    with pytest.raises(DataError, match="found no inputs, so the columns of the Parquet file are unknown"):
        ParquetWriter({}).write_file([], Path("out.parquet"), 0)
