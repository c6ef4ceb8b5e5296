"""Label cells: how labels are written in files, and which cells are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import BertConfig

from bertcli.data.sources import load_split
from bertcli.errors import MAX_QUOTED_CHARS, DataError, ModelError
from bertcli.heads.labels import labelled_rows, labels_from_config, resolve_labels
from bertcli.heads.text_classification import TextClassification
from bertcli.tasks.task import Problem, Task


def task_of(path: Path | str | None = None, **rest: Any) -> Task:
    source = {"dataset": "x"} if path is None else {"files": {"test": str(path)}}
    return Task.model_validate({"text_columns": ("text",), **source, **rest})


@pytest.fixture
def read_labels(tmp_path: Path) -> Callable[..., tuple[tuple[str, ...], list[Any]]]:
    """Write one label per row to a JSON Lines or CSV file, read it, and return the label names and the gold values."""

    def read(cells: list[Any], problem: Problem, suffix: str = "jsonl", **rest: Any) -> tuple[tuple[str, ...], Any]:
        path = tmp_path / f"rows.{suffix}"
        if suffix == "jsonl":
            text = "".join(json.dumps({"text": f"t{row}", "label": label}) + "\n" for row, label in enumerate(cells))
        else:
            text = "text,label\n" + "".join(f't{row},"{label}"\n' for row, label in enumerate(cells))
        path.write_text(text, "utf-8")
        task = task_of(path, problem=problem, **rest)
        rows = load_split(task, "test")
        names = resolve_labels(task, rows)
        gold = TextClassification(problem, names).references(task, rows)
        assert gold is not None
        return names, gold.tolist()

    return read


Read = Callable[..., tuple[tuple[str, ...], Any]]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_minus_one_and_one_of_svm_files_lead_to_task_labels(read_labels: Read, suffix: str) -> None:
    hint = r" If -1 is a label, list it in task\.labels\.$"
    with pytest.raises(DataError, match=r"expected at least two labels, found 1: \['1'\]\." + hint):
        read_labels([-1, 1, -1], "single_label", suffix)
    with pytest.raises(DataError, match="row 2 has no label.*" + hint):
        read_labels([0, -1, 1], "single_label", suffix)
    assert read_labels([-1, 1, -1], "single_label", suffix, labels=("-1", "1")) == (("-1", "1"), [0, 1, 0])
    with pytest.raises(DataError, match=r"expected at least two labels, found 1: \['1'\]$"):
        read_labels([1, 1], "single_label", suffix)


@pytest.mark.parametrize(
    "cells",
    [
        [{"POS": 1, "NEG": 0}, {"POS": 0, "NEG": 1}],
        [{"POS": 1.0, "NEG": 0.0}, {"POS": 0.0, "NEG": 1.0}],
        [{"POS": True, "NEG": False}, {"POS": False, "NEG": True}],
        [{"POS": 1}, {"NEG": 1}],
        [{"POS": True}, {"POS": 0, "NEG": 1.0}],
    ],
)
def test_multi_label_objects_name_the_labels_that_are_1(read_labels: Read, cells: list[Any]) -> None:
    assert read_labels(cells, "multi_label") == (("NEG", "POS"), [[0, 1], [1, 0]])


def test_multi_label_object_keys_are_labels_even_if_no_row_has_them(read_labels: Read) -> None:
    cells = [{"a": 1, "b": 0, "never": 0}, {"a": 0, "b": 1, "never": 0}]
    assert read_labels(cells, "multi_label") == (("a", "b", "never"), [[1, 0, 0], [0, 1, 0]])


def test_multi_label_object_with_probabilities_is_refused(read_labels: Read) -> None:
    with pytest.raises(DataError, match=r"row 2 has .*expected 0 or 1"):
        read_labels([{"a": 1.0, "b": 0.0}, {"a": 0.3, "b": 0.7}], "multi_label")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize(
    "cells",
    [
        [[1, 0, 0], [0, 1, 1]],
        [[0, 1], [1, 0]],
        [[0, 1], [1, 1]],
        [[True, False, False], [False, True, False]],
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    ],
)
def test_multi_hot_lists_are_refused(read_labels: Read, suffix: str, cells: list[Any]) -> None:
    with pytest.raises(DataError, match=r"row [12] has .*0 or 1 for each label, expected the names"):
        read_labels(cells, "multi_label", suffix)
    with pytest.raises(DataError, match="0 or 1 for each label, expected the names"):
        read_labels(cells, "multi_label", suffix, labels=("x", "y", "z")[: len(cells[0])])


def test_multi_hot_cells_with_commas_are_refused(read_labels: Read) -> None:
    with pytest.raises(DataError, match=r"row 1 has '1,0,0' in column 'label': this looks like 0 or 1 for each label"):
        read_labels(["1,0,0", "0,1,1"], "multi_label", "csv")


def test_lists_of_label_ids_are_labels(read_labels: Read) -> None:
    assert read_labels([[2, 10], [0], [1, 0]], "multi_label") == (
        ("0", "1", "2", "10"),
        [[0, 0, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]],
    )


@pytest.mark.parametrize("cells", [["['x', 'y']", "['x']", "[]"], ['[""x"", ""y""]', '[""x""]', "[]"]])
def test_printed_lists_in_csv_are_lists(read_labels: Read, cells: list[str]) -> None:
    assert read_labels(cells, "multi_label", "csv") == (("x", "y"), [[1, 1], [1, 0], [0, 0]])


@pytest.mark.parametrize(
    "cells",
    [
        ["('x', 'y')", "('x',)", "()"],
        ["{'y', 'x'}", "{'x'}", "set()"],
        ["frozenset({'y', 'x'})", "{'x'}", "frozenset()"],
    ],
)
def test_printed_tuples_and_sets_in_csv_are_lists(read_labels: Read, cells: list[str]) -> None:
    assert read_labels(cells, "multi_label", "csv") == (("x", "y"), [[1, 1], [1, 0], [0, 0]])


def test_printed_objects_in_csv_are_objects(read_labels: Read) -> None:
    assert read_labels(["{'x': 1, 'y': 0}", "{'x': 0, 'y': 0}"], "multi_label", "csv") == (("x", "y"), [[1, 0], [0, 0]])


@pytest.mark.parametrize("cell", ["['x' 'y']", "['x', 'y'", "[x, y]", "{'x' 'y'}", "('x', 'y'", "[nan]"])
def test_printed_lists_that_cannot_be_read_are_refused(read_labels: Read, cell: str) -> None:
    with pytest.raises(DataError, match=r"row 2 has .*cannot parse the printed list"):
        read_labels(["a", cell], "multi_label", "csv")


def test_listed_labels_in_brackets_are_labels(read_labels: Read) -> None:
    listed = {"labels": ("[other]", "a")}
    assert read_labels(["[other]", "a"], "single_label", "csv")[1] == [0, 1]
    assert read_labels(["a,[other]", "[other]"], "multi_label", "csv", **listed)[1] == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("cells", "suffix"),
    [
        ([["x"], ["y"], ["x", "y"]], "jsonl"),
        ([{"x": 1}, {"y": 1}], "jsonl"),
        (["['x']", "['y']"], "csv"),
        (["{'x': 1}", "{'x': 0}"], "csv"),
    ],
)
def test_list_in_a_single_label_column_is_refused(read_labels: Read, cells: list[Any], suffix: str) -> None:
    with pytest.raises(DataError, match=r"row 1 has .* in column 'label', expected one label.*problem=multi_label"):
        read_labels(cells, "single_label", suffix)


def test_list_after_texts_in_a_single_label_column_is_refused(read_labels: Read) -> None:
    with pytest.raises(DataError, match=r"row 2 has a list in column 'label', but other rows have text"):
        read_labels(["x", ["y"]], "single_label")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_nan_is_a_missing_label(tmp_path: Path, suffix: str) -> None:
    import pyarrow
    from pyarrow import parquet

    path, cells = tmp_path / f"rows.{suffix}", [1.0, 0.0, float("nan")]
    rows = [{"text": f"t{row}", "label": label} for row, label in enumerate(cells)]
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    for problem in ("single_label", "regression"):
        task = task_of(path, problem=problem)
        rows_read = load_split(task, "test")
        labels = resolve_labels(task, rows_read)
        assert labels == (("0", "1") if problem == "single_label" else ())
        with pytest.raises(DataError, match=r"rows\.\w+: row 3 has no label, but other rows do"):
            TextClassification(problem, labels).references(task, rows_read)


@pytest.mark.parametrize("item", [None, float("nan"), " ", -1])
def test_missing_label_in_a_list_is_refused(item: Any) -> None:
    lists = [["a"], ["b", item]] if item is None or isinstance(item, str) else [[1.0, 2.0], [1.0, item]]
    rows = Dataset.from_dict({"text": ["t", "t"], "label": lists})
    with pytest.raises(DataError, match=r"row 2 has .*a label in the list is missing"):
        resolve_labels(task_of(problem="multi_label"), rows)


def test_numeric_labels_sort_as_numbers_so_that_f1_scores_the_larger(read_labels: Read) -> None:
    assert read_labels(["9", "10", "9"], "single_label", "csv") == (("9", "10"), [0, 1, 0])
    assert read_labels([10, 9], "single_label") == (("9", "10"), [1, 0])
    assert read_labels([0.5, -2.5, 10.0], "single_label")[0] == ("-2.5", "0.5", "10")
    assert read_labels(["10", "9", "b"], "single_label", "csv")[0] == ("10", "9", "b")  # text sorts as text


def test_single_value_in_a_multi_label_column_is_one_label(read_labels: Read) -> None:
    assert read_labels([1, 0], "multi_label") == (("0", "1"), [[0, 1], [1, 0]])
    assert read_labels([[1, 2], 2], "multi_label") == (("1", "2"), [[1, 1], [0, 1]])
    assert read_labels(["b", ["a", "b"]], "multi_label") == (("a", "b"), [[0, 1], [1, 1]])
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    rows = Dataset.from_dict({"text": ["t"] * 2, "label": [1, 0]}, features=features)
    gold = TextClassification("multi_label", ("x", "y")).references(task_of(problem="multi_label"), rows)
    assert gold is not None
    assert gold.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("labels", "cells"),
    [
        (("false", "true"), [True, False]),
        (("False", "True"), [True, False]),
        (("false", "true"), ["True", "False"]),
        (("0", "1"), [1.0, 0.0]),
        (("0", "1"), [1, 0.0]),
        (("0.0", "1.0"), [1, 0]),
        (("0", "1"), ["1.0", "0.0"]),
        (("0", "1"), [1, "0"]),
        (("-1", "1"), [1.0, -1.0]),
        (("neg", "pos"), [" pos", "neg\u00a0"]),
    ],
)
def test_booleans_numbers_and_padded_labels_match_as_written(
    read_labels: Read, labels: tuple[str, ...], cells: list[Any]
) -> None:
    assert read_labels(cells, "single_label", labels=labels) == (labels, [1, 0])


def test_labels_in_different_types_are_one_label(read_labels: Read) -> None:
    assert read_labels([True, False, "true"], "single_label") == (("false", "true"), [1, 0, 1])
    assert read_labels([1, 1.0, "1", 0], "single_label") == (("0", "1"), [1, 1, 1, 0])
    assert read_labels([" a", "a", "b "], "single_label") == (("a", "b"), [0, 0, 1])
    assert read_labels(["1.1", "1.10", "01", "1"], "single_label")[0] == ("01", "1", "1.1", "1.10")  # all different


def test_boolean_that_matches_two_labels_is_unknown() -> None:
    rows = Dataset.from_dict({"text": ["t"], "label": ["TRUE"]})
    with pytest.raises(DataError, match=r"row 1 has the label 'TRUE', expected one of"):
        TextClassification("single_label", ("True", "true")).references(task_of(), rows)


def test_first_ten_rows_without_a_label_are_named_with_their_number() -> None:
    rows = Dataset.from_dict({"text": ["t"] * 30, "label": ["a", None] * 15})
    expected = r"rows 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, … \(15 rows\) have no label.*data\.skip_unlabelled=true"
    with pytest.raises(DataError, match=expected):
        TextClassification("single_label", ("a", "b")).references(task_of(), rows)


def test_first_ten_rows_with_unknown_labels_are_named_with_their_number() -> None:
    rows = Dataset.from_dict({"text": ["t"] * 30, "label": ["a", "x" * 200] * 15})
    with pytest.raises(DataError, match=r"In all, 15 rows .*rows 2, 4, .* 20, … \(15 rows\)\. Fix the rows") as error:
        TextClassification("single_label", ("a", "b")).references(task_of(), rows)
    assert "x" * 81 not in str(error.value)


def test_unknown_label_lists_at_most_80_characters_of_labels() -> None:
    labels = tuple(f"label-{number}" for number in range(1000))
    rows = Dataset.from_dict({"text": ["t"], "label": ["other"]})
    with pytest.raises(DataError, match=r"… \(1000 labels\)") as error:
        TextClassification("single_label", labels).references(task_of(), rows)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("problem", "labels", "kept"),
    [
        ("single_label", ["a", None, " ", "-1", "b"], ["a", "b"]),
        ("multi_label", ["a", None, "", "b"], ["a", "", "b"]),  # an empty cell: none of the labels
        ("regression", [1.0, None, float("nan"), -1.0], [1.0, -1.0]),
        ("single_label", [None, None], [None, None]),  # hidden labels of a test split
    ],
)
def test_skip_unlabelled_keeps_labeled_rows(problem: Problem, labels: list[Any], kept: list[Any]) -> None:
    rows = Dataset.from_dict({"text": ["t"] * len(labels), "label": labels})
    assert labelled_rows(task_of(problem=problem), rows)["label"][:] == kept


@pytest.mark.parametrize("cells", [[[0.5], [1.5]], ["0.5", "1.5"], ["0.5", 1.5]])
def test_regression_targets_in_lists_of_one_and_texts_are_numbers(read_labels: Read, cells: list[Any]) -> None:
    assert read_labels(cells, "regression") == ((), [0.5, 1.5])


@pytest.mark.parametrize(
    "cell", [[1.0, 2.0], [], ["a"], "a", "1,5", {"a": 1.0}, float("inf"), "nan"], ids=lambda cell: str(cell)
)
def test_regression_targets_that_are_not_numbers_are_refused_with_their_rows(read_labels: Read, cell: Any) -> None:
    with pytest.raises(DataError, match=r"rows?.jsonl: rows? 2.* (no label|no finite number|but other rows have)"):
        read_labels([1.0, cell], "regression")
    if isinstance(cell, list):
        with pytest.raises(DataError, match=r"rows 1, 2 have no finite number in column 'label', found .*one number"):
            read_labels([cell, cell], "regression")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({0: "good", 1: "bad", 2: "good"}, "has the same name for labels 0 and 2, 'good'"),
        ({0: 1, 1: "1"}, "has the same name for labels 0 and 1, '1'"),
        ({1: "good", 2: "bad"}, r"has the ids \[1, 2\], expected 0 to 1"),
    ],
)
def test_labels_of_a_model_that_are_ambiguous_are_refused(names: dict[int, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        labels_from_config(BertConfig(id2label=names))


@pytest.mark.parametrize("name", [None, ["a"], {"a": 1}, float("nan")])
def test_labels_of_a_model_that_are_not_text_are_refused(name: Any) -> None:
    with pytest.raises(ModelError, match=r"id2label in config\.json of the model has .* for label 1, expected text"):
        labels_from_config(BertConfig.from_dict({"id2label": {"0": "a", "1": name}}))


@pytest.mark.parametrize(
    ("label2id", "contradiction"),
    [
        ({"a": 1, "b": 0}, "'a', but its label2id has 1;"),
        ({"a": 0, "b": "x"}, "'b', but its label2id has 'x';"),
        ({"b": None}, "'b', but its label2id has None;"),
        ({"a": 0, "b": "1"}, None),
        ({"LABEL_0": 0, "LABEL_1": 1}, None),
        (None, None),
    ],
)
def test_labels_of_a_model_that_contradict_their_ids_are_refused(label2id: Any, contradiction: str | None) -> None:
    config = BertConfig.from_dict({"id2label": {"0": "a", "1": "b"}, "label2id": label2id})
    if contradiction is None:
        assert labels_from_config(config) == ("a", "b")
    else:
        with pytest.raises(ModelError, match=rf"id2label in config\.json .* for {contradiction} correct or restore"):
            labels_from_config(config)


def test_labels_of_a_model_that_are_numbers_are_read_as_text() -> None:
    assert labels_from_config(BertConfig.from_dict({"id2label": {"0": 1, "1": 2.5, "2": False}})) == (
        "1",
        "2.5",
        "false",
    )


def test_labels_of_a_model_are_read_in_the_order_of_their_ids() -> None:
    assert labels_from_config(BertConfig(id2label={1: "bad", 0: "good"})) == ("good", "bad")


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["True", "false", "TRUE", "true", "1", "0"], ("0", "1", "false", "true")),
        (["1", "1.0", "1.00", "01", "2"], ("01", "1", "2")),
        (["1.0", "0.0"], ("0.0", "1.0")),
        (["True", "true", "maybe"], ("True", "maybe", "true")),
        (["True", "true", "maybe", "1", "1.0"], ("1", "True", "maybe", "true")),
    ],
)
def test_inferred_labels_that_differ_only_in_spelling_are_one(
    read_labels: Read, cells: list[str], labels: tuple[str, ...]
) -> None:
    assert read_labels(cells, "single_label", "csv")[0] == labels


def test_inferred_labels_of_mixed_json_types_are_one_label(read_labels: Read) -> None:
    assert read_labels([True, "True", 1, 1.0, "1"], "single_label") == (("1", "true"), [1, 1, 0, 0, 0])


def test_inferred_labels_of_files_with_1_and_1_0_are_one_label(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1.0\nb,0.0\n")
    (tmp_path / "b.jsonl").write_text('{"text": "c", "label": 1}\n{"text": "d", "label": 0}\n')
    task = Task.model_validate(
        {"text_columns": ("text",), "files": {"train": [str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")]}}
    )
    assert resolve_labels(task, load_split(task, "train")) == ("0", "1")


@pytest.mark.parametrize("labels", [("a", "a ", "b"), ("1", "1.0"), ("True", "true")])
def test_listed_labels_that_differ_only_in_spelling_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="`labels` contains a label twice"):
        task_of(labels=labels)


@pytest.mark.parametrize("nan", ["nan", "NaN"])
@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_nan_in_csv_is_an_unlabeled_row(tmp_path: Path, problem: Problem, nan: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"text,label\na,1\nb,{nan}\nc,2\n")
    task = task_of(path, problem=problem)
    rows = load_split(task, "test")
    assert labelled_rows(task, rows)["text"][:] == ["a", "c"]
    with pytest.raises(DataError, match=r"rows\.csv: row 2 has no label"):
        TextClassification(problem, resolve_labels(task, rows)).references(task, rows)


def test_listed_label_nan_is_a_label(read_labels: Read) -> None:
    assert read_labels(["nan", "roti"], "single_label", "csv", labels=("nan", "roti")) == (("nan", "roti"), [0, 1])


@pytest.mark.parametrize(
    "rows",
    [
        {"text": ["a"], "label": ["L" * 200]},
        {"text": ["a"], "LLLL" * 50: ["b"]},
    ],
)
def test_message_about_labels_names_the_file_and_quotes_at_most_80_characters(
    tmp_path: Path, rows: dict[str, list[Any]]
) -> None:
    task = Task.model_validate({"text_columns": ("text",), "files": {"train": str(tmp_path / "rows.csv")}})
    with pytest.raises(DataError, match=r"rows\.csv: (expected at least two labels, found 1|found columns)") as error:
        resolve_labels(task, Dataset.from_dict(rows))
    assert 50 < str(error.value).count("L") < MAX_QUOTED_CHARS
