"""Tables in files: only the columns of the task are read, and their values as written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertcli.data.prediction_inputs import infer_format, read_inputs
from bertcli.data.sources import load_split
from bertcli.data.table_files import read_files
from bertcli.errors import DataError
from bertcli.tasks.task import Task


def task_of(**rest: Any) -> Task:
    return Task.model_validate({"dataset": "x", "text_columns": ("text",), **rest})


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


LONG_ID = "012345678901234567890123"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("ids", [["007", "0012"], [LONG_ID], ["2020-01-01"], ["1e3"], ["True"], ["NA", ""]])
def test_ids_keep_their_characters(tmp_path: Path, write_csv: Callable[..., Path], suffix: str, ids: list[str]) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, [{"id": each, "text": "t", "label": "x"} for each in ids])
    else:
        write_csv(path.name, ["id", "text", "label"], [[each, "t", "x"] for each in ids])
    assert read_files([str(path)], task_of(id_column="id"))["id"][:] == ids


def test_ids_of_several_types_in_json_become_text(tmp_path: Path) -> None:
    rows = [{"id": each, "text": "t", "label": "x"} for each in ("007", 7, 2**70)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_files([path], task_of(id_column="id"))["id"][:] == ["007", "7", str(2**70)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["text", "meta"])
def test_column_that_is_there_twice_is_refused_with_its_name(tmp_path: Path, suffix: str, name: str) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        names = ["text", "label", "meta", name]
        parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 4, names), path)
    elif suffix == "jsonl":
        path.write_text('{"text": "a", "text": "b", "label": "x"}\n')
        name = "text"
    else:
        separator = "," if suffix == "csv" else "\t"
        path.write_text(separator.join(["text", "label", "meta", name]) + "\n" + separator.join("abcd") + "\n")
    with pytest.raises(DataError, match=rf"rows\.{suffix}.*{name}.* twice"):
        read_files([str(path)], task_of())


def test_columns_without_a_name_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label,,\na,x,,\nb,y,,\n")
    assert read_files([str(path)], task_of()).to_list() == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


ODD_VALUES = [1, "q", None, [1, "a"], {"a": {"b": []}}, 2**70, True, float("nan")]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_unused_columns_may_hold_anything(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": "t", "label": "x", "meta": value, f"extra {row}": row} for row, value in enumerate(ODD_VALUES)]
    path = tmp_path / f"rows.{suffix}"
    write_jsonl(path, rows)
    if suffix == "json":
        path.write_text(json.dumps(rows))
    assert read_files([str(path)], task_of()).to_list() == [{"text": "t", "label": "x"}] * len(rows)


def test_unused_csv_columns_may_change_type_after_the_first_block(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [f"text {row},x,{row}\n" for row in range(80_000)]
    path.write_text("text,label,meta\n" + "".join(rows) + "last,x,not a number\n")
    assert read_files([str(path)], task_of())["text"][-1] == "last"


def test_files_whose_unused_columns_differ_are_concatenated(tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    paths = [
        str(write_csv("a.csv", ["meta", "text", "label"], [["1", "a", "1"]])),
        str(write_csv("b.csv", ["label", "text"], [["2", "b"]])),
        write_jsonl(tmp_path / "c.jsonl", [{"text": "c", "label": 1, "meta": {"q": 1}}]),
        write_jsonl(tmp_path / "d.jsonl", [{"label": 2.0, "text": "d", "other": []}]),
    ]
    rows = read_files(paths, task_of())
    assert rows["text"][:] == ["a", "b", "c", "d"]
    assert rows["label"][:] == ["1", "2", "1", "2"]


def test_missing_column_message_lists_the_columns_of_the_file(tmp_path: Path) -> None:
    rows = read_files([write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "meta": 1}, {"meta": "q"}])], task_of())
    assert rows.column_names == ["text", "meta"]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_json_dates_are_text(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": "2020-01-01", "label": "2020-01-01"}, {"text": "2020-01-01T10:00:00Z", "label": "2021-01-01"}]
    path = tmp_path / f"rows.{suffix}"
    write_jsonl(path, rows)
    if suffix == "json":
        path.write_text(json.dumps(rows))
    assert read_files([str(path)], task_of()).to_list() == rows


def test_json_list_reads_columns_that_the_first_entry_lacks(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "a"}, {"text": "b", "label": "x"}]')
    assert read_files([str(path)], task_of())["label"][:] == [None, "x"]


def test_text_that_is_a_number_in_some_rows_is_refused_with_its_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "x"}, {"text": 5, "label": "x"}])
    message = r"rows\.jsonl: row 2 has a number in column 'text', but other rows have text"
    with pytest.raises(DataError, match=message):
        read_files([path], task_of())


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "jsonl.gz"])
@pytest.mark.parametrize(
    ("lines", "bad_line", "cure"),
    [
        (['{"text": "a", "label": "x"}', '{"text": "b", "label": "x"} {"text": "c", "label": "y"}'], 2, "line"),
        (['{"text": "a", "label": "x"}', "", '{"text": "b", "label": "x"}{"text": "c", "label": "y"}'], 3, "line"),
        (['{"text": "a", "label": "x"},', '{"text": "b", "label": "y"},'], 1, "any"),
        (["{", ' "text": "a", "label": "x"', "}", "{", ' "text": "b", "label": "y"', "}"], 1, "any"),
    ],
)
def test_json_lines_with_several_objects_or_commas_are_refused_with_line_and_cure(
    tmp_path: Path, suffix: str, lines: list[str], bad_line: int, cure: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    content = "\n".join(lines).encode() + b"\n"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    expected = "each line must be one object"
    if suffix == "json" and cure == "any":
        bad_line, expected = (4 if lines[0] == "{" else 1), "use a list of objects, or one object per line"
    messages = set()
    for read in (
        lambda: read_files([str(path)], task_of()),
        lambda: read_files([str(path)]),
        lambda: list(read_inputs(str(path), infer_format(str(path)), ["text"])),
    ):
        with pytest.raises(DataError) as error:
            read()
        messages.add(str(error.value))
    (message,) = messages
    assert message.startswith(f"{path}:{bad_line}: not JSON (")
    assert message.endswith(f"); {expected}")


def test_json_lines_with_blank_lines_and_one_pretty_printed_row_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a {b} {c}", "label": "x"}\n \r\n\n{"text": "}{", "label": "y"}')
    assert read_files([str(path)], task_of())["text"][:] == ["a {b} {c}", "}{"]
    path.write_text('{\n"text": "a",\n"label": "x"\n}\n')
    assert read_files([str(path)], task_of())["text"][:] == ["a"]


def test_answer_start_of_another_type_in_one_row_is_refused_with_its_row(tmp_path: Path) -> None:
    starts = [[], [4], ["4"]]
    rows = [{"text": "a", "answers": {"text": ["a"] * len(each), "answer_start": each}} for each in starts]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    message = r"row 3 has text in column 'answers\.answer_start\[…\]', but other rows have a number; use the same type"
    with pytest.raises(DataError, match=message):
        read_files([path], task_of(head="question_answering", label_column="answers"))


def test_parquet_categories_are_read_as_text(tmp_path: Path) -> None:
    import pandas
    import pyarrow
    from pyarrow import parquet

    frame = pandas.DataFrame({"text": ["a", "b"], "label": pandas.Categorical(["x", "y"])})
    frame.to_parquet(tmp_path / "a.parquet")
    view = pyarrow.table({"text": pyarrow.array(["c"], pyarrow.string_view()), "label": ["x"]})
    parquet.write_table(view, tmp_path / "b.parquet")
    paths = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    assert [read_files([path], task_of())["label"][:] for path in paths] == [["x", "y"], ["x"]]
    assert read_files(paths[1:], task_of())["text"][:] == ["c"]


def test_csv_row_with_too_many_values_quotes_at_most_80_characters(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,b\n" + "x" * 500 + ",b,c\n")
    with pytest.raises(DataError, match=r"rows\.csv:3: found 3 values") as error:
        read_files([str(path)], task_of())
    assert "x" * 81 not in str(error.value)


def test_values_that_a_library_quotes_are_truncated() -> None:
    rows = [{"text": "t", "label": {"a": 1}}, {"text": "t", "label": {"a": "SECRET" * 60}}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"rows\.jsonl: Could not convert 'SECRET") as caught:
        read_files(["rows.jsonl"], task_of(problem="multi_label"))
    assert "SECRET" * 14 not in str(caught.value)


def test_rows_are_not_hashed(write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes longer, and more memory, than to read them."""
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda *_: pytest.fail("the rows were hashed"))
    path = write_csv("rows.csv", ["text", "split"], [["a", "train"], ["b", "dev"]])
    assert len(read_files([str(path)])) == 2
    task = Task.model_validate(
        {"files": {"train": str(path)}, "text_columns": ("text",), "split_column": "split", "splits": {"train": "dev"}}
    )
    assert load_split(task, "train", None)["text"][:] == ["b"]
