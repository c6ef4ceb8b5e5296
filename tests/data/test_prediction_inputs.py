"""Prediction inputs: files with a column twice, or without a header that is not announced, are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertcli.data.prediction_inputs import InputRows, PredictionInput, load_inputs, read_inputs
from bertcli.errors import DataError, UsageError
from bertcli.tasks.task import Task


@pytest.mark.parametrize("input_format", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("name", ["text", "meta"])
def test_input_column_that_is_there_twice_is_refused_with_its_name(
    tmp_path: Path, input_format: str, name: str
) -> None:
    import pyarrow
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
    with pytest.raises(DataError, match="column 'text' of the inputs has both texts and lists of texts"):
        InputRows({"text": ["one", None, ["two"]]})


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
