"""Prediction inputs: columns that cannot be kept, unreadable values and missing headers are refused by name."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest

from bertcli.data.formats import Row
from bertcli.data.prediction_inputs import PARQUET_BATCH_SIZE, InputRows, PredictionInput, load_inputs, read_inputs
from bertcli.data.table_files import ROW_COLUMN
from bertcli.errors import DataError, UsageError
from bertcli.tasks.task import Task


@pytest.mark.parametrize("input_format", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("name", ["text", "meta"])
def test_input_column_that_is_there_twice_is_refused_with_its_name(
    tmp_path: Path, input_format: str, name: str
) -> None:
    from pyarrow import parquet

    path, names = tmp_path / "rows", ["text", "meta", name]
    if input_format == "parquet":
        parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names), path)
    else:
        separator = "," if input_format == "csv" else "\t"
        path.write_text(separator.join(names) + "\n" + separator.join("abc") + "\n")
    with pytest.raises(DataError, match=f"has the column '{name}' twice"):
        list(read_inputs(str(path), input_format, ["text"]))


def test_input_rows_are_read_like_a_dataset() -> None:
    from datasets import Dataset

    listed = [{"text": "one", "words": ["a", "b"], "id": "7"}, {"text": "two", "words": []}, {"text": "six", "n": 1}]
    dataset = Dataset.from_list(listed)
    rows = InputRows({name: [row.get(name) for row in listed] for name in listed[0]})
    assert len(rows) == len(dataset) == 3
    assert rows.column_names == dataset.column_names
    assert rows.split is dataset.split is None
    assert all(rows[name][:] == dataset[name][:] for name in dataset.column_names)
    assert [rows[row] for row in range(3)] == [dataset[row] for row in range(3)]
    assert rows[1:5] == dataset[1:5]
    assert rows.select(range(1, 3))[:] == dataset.select(range(1, 3))[:]


def test_input_rows_with_texts_and_lists_of_texts_in_a_column_are_refused() -> None:
    with pytest.raises(
        DataError, match="'text' of the inputs has a text in row 1 and a list of texts in row 3; use one"
    ):
        InputRows({"text": ["one", None, ["two"]]})
    with pytest.raises(DataError, match="a text in row 8 and a list of texts in row 7"):
        InputRows({"text": [["two"], "one"], ROW_COLUMN: [7, 8]})


@pytest.mark.parametrize("input_format", ["csv", "tsv", "parquet"])
def test_columns_without_a_name_are_kept_only_if_none_is_lost(tmp_path: Path, input_format: str) -> None:
    from pyarrow import parquet

    path = tmp_path / "rows"

    def read(names: list[str], extra_columns: tuple[str, ...] | None) -> list[Row]:
        if input_format == "parquet":
            values = [pyarrow.array([letter]) for letter in "abc"[: len(names)]]
            parquet.write_table(pyarrow.Table.from_arrays(values, names), path)
        else:
            separator = "," if input_format == "csv" else "\t"
            path.write_text(f"{separator.join(names)}\n{separator.join('abc'[: len(names)])}\n")
        return list(read_inputs(str(path), input_format, ["text"], extra_columns=extra_columns))

    assert read(["text", ""], None) == [{"text": "a", "": "b"}]
    assert read(["text", "", ""], ()) == [{"text": "a"}]
    with pytest.raises(DataError, match="has several columns without a name, which cannot all be kept; name or remove"):
        read(["text", "", ""], None)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (pyarrow.array([0, 1000, 1001], pyarrow.time64("ns")), "would lose data: 1001"),
        (pyarrow.array([0, 1, 2**53], pyarrow.timestamp("s")), ""),
        (pyarrow.array([b"", b"a", b"\xff"]).cast(pyarrow.string(), safe=False), "can't decode byte 0xff"),
    ],
    ids=["nanosecond", "year", "bytes"],
)
def test_parquet_values_that_python_does_not_have_are_named(tmp_path: Path, values: pyarrow.Array, reason: str) -> None:
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    texts = ["a"] * (2 * PARQUET_BATCH_SIZE)
    column = pyarrow.concat_arrays([pyarrow.nulls(len(texts) - 3, values.type), values])
    parquet.write_table(pyarrow.table({"text": texts, "x": column}), path)
    assert len(list(read_inputs(str(path), "parquet", ["text"]))) == len(texts)
    with pytest.raises(
        DataError, match=rf"rows.parquet, row {len(texts)}: cannot read the value in column 'x'.*{reason}"
    ):
        list(read_inputs(str(path), "parquet", ["text"], extra_columns=None))


@pytest.mark.parametrize(("values", "option"), [(["a", "b"], "--pair"), (["a", "b", "c"], "--choice")])
def test_model_of_single_texts_refuses_a_second_one(values: list[str], option: str) -> None:
    task = Task(dataset="x", text_columns=("text",))
    with pytest.raises(UsageError, match=f"this model takes one text; leave out {option}"):
        list(load_inputs(task, PredictionInput(values=[values]), (), None, from_run=True))


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_file_without_a_header_needs_the_names_of_its_columns(name: str, separator: str) -> None:
    Path(name).write_text(f"pos{separator}fine{separator}1\nneg{separator}bad, really{separator}2\n".replace(", ", " "))
    task = Task(dataset="x", text_columns=("text",))

    def texts(names: list[str] | None) -> list[str]:
        inputs = PredictionInput(path=name, column_names=names)
        return [row["text"] for row in load_inputs(task, inputs, (), None, from_run=True)]

    assert texts(["label", "text", "number"]) == ["fine", "bad really"]
    with pytest.raises(
        DataError, match=rf"^{name}:2: .*; if the file has no header, name its columns with --input-col"
    ):
        texts(None)
    with pytest.raises(DataError, match=rf"^{name}:1: found columns .*, expected text in column 'text'$"):
        texts(["label", "x", "y"])
    with pytest.raises(DataError, match=rf"^{name}:1: found .* expected 1 for the given column names"):
        texts(["text"])
    Path(name).write_text(f"text{separator}label\nfine{separator}pos\n")
    with pytest.raises(DataError, match=rf"^{name}:1: this line has the names of the columns"):
        texts(["text", "label"])
