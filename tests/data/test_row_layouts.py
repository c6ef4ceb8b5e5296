"""Rows in people's layouts are arranged as heads read them: columns of 0 and 1, a row per word, printed tags."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from bertcli.data.prediction_inputs import PredictionInput, load_inputs
from bertcli.data.sources import load_split, locate_rows
from bertcli.errors import DataError, RecipeError
from bertcli.heads.labels import label_names
from bertcli.heads.question_answering import answer_spans
from bertcli.recipe.load import load_recipe
from bertcli.tasks.task import Files, Splits, Task

WriteCsv = Callable[..., Path]


def multi_label_task(path: Path, **keys: Any) -> Task:
    files = Files(train=(str(path),), validation=(str(path),))
    return Task(files=files, text_columns=("text",), problem="multi_label", **keys)


def test_columns_of_0_and_1_become_lists_of_labels(write_csv: WriteCsv) -> None:
    rows = [["x", 1, "0"], ["y", "1.0", "TRUE"], ["z", 0, "false"], ["hidden", -1, -1], ["", "", ""]]
    task = multi_label_task(write_csv("t.csv", ["text", "b", "a"], rows), label_columns=("b", "a"))
    split = load_split(task, "train")
    assert split["label"][:] == [["b"], ["b", "a"], [], None, None]
    assert split.column_names == ["text", "label"]
    assert task.head_class.task_labels(task, split) == ("b", "a")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["x", 1, 2], "row 2 has '2' in column 'b', expected 0 or 1"),
        (["x", 1, ""], "row 2 has no value in column 'b', expected 0 or 1 for each label"),
    ],
)
def test_other_values_in_columns_of_0_and_1_are_refused(write_csv: WriteCsv, row: list[object], message: str) -> None:
    path = write_csv("t.csv", ["text", "a", "b"], [["w", 0, 1], row])
    with pytest.raises(DataError, match=message):
        load_split(multi_label_task(path, label_columns=("a", "b")), "train")
    with pytest.raises(DataError, match=r"no column 'c'; .* Set task\.label_columns"):
        load_split(multi_label_task(path, label_columns=("a", "c")), "train")


def test_labels_in_a_cell_are_separated_by_the_label_delimiter(write_csv: WriteCsv) -> None:
    task = multi_label_task(write_csv("t.csv", ["text", "label"], [["x", "a, b; c"], ["y", "c"]]), label_delimiter=";")
    split = load_split(task, "train")
    assert label_names(task, split, split["label"][:]) == [["a, b", "c"], ["c"]]


def word_task(path: Path) -> Task:
    return Task(
        head="token_classification",
        files=Files(train=(str(path),), validation=(str(path),)),
        text_columns=("Word",),
        label_column="Tag",
        sentence_column="Sentence #",
    )


def test_rows_of_words_become_sentences_whose_numbers_are_those_of_the_file(write_csv: WriteCsv) -> None:
    header = ["Sentence #", "Word", "POS", "Tag"]
    rows = [
        ["1", "a", "X", "O"],
        ["", '"', "X", "B-p"],
        ["", "c", "X", ""],
        ["2", "d", "X", "O"],
        ["2", "null", "X", "O"],
    ]
    path = write_csv("ner.csv", header, rows)
    task = word_task(path)
    split = load_split(task, "train")
    assert split["Word"][:] == [["a", '"', "c"], ["d", "null"]]
    assert split["Tag"][:] == [["O", "B-p", ""], ["O", "O"]]
    assert locate_rows(task, split, [1]) == f"{path}: row 4"
    inputs = load_inputs(task, PredictionInput(path=str(path)), ("tokens",), None, from_run=True)
    assert [row["Word"] for row in inputs] == split["Word"][:]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["", "a", "O"]], "row 1 has no sentence"),
        ([["1", " ", "O"]], "row 1 of column 'Word' has no word"),
        ([["1", "a", "O"], ["2", "b", "O"], ["1", "c", "O"]], "row 3 belongs to sentence '1', which ended above"),
    ],
)
def test_unclear_sentences_are_refused(write_csv: WriteCsv, rows: list[list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_split(word_task(write_csv("ner.csv", ["Sentence #", "Word", "Tag"], rows)), "train")


@pytest.mark.parametrize(
    ("text", "tags", "expected"),
    [
        ("['Anna', 'is', 'here']", "['B-PER', 'O', None]", ["B-PER", "O", None]),
        ("Anna is here", "B-PER O O", ["B-PER", "O", "O"]),
        ("Anna is here", "B-PER,O,O", ["B-PER", "O", "O"]),
        ('["Anna", "is", "here"]', "[3, 0, -100]", ["3", "0", "-100"]),
    ],
)
def test_printed_words_and_tags_become_lists(write_csv: WriteCsv, text: str, tags: str, expected: list[str]) -> None:
    path = write_csv("ner.csv", ["text", "tags"], [[text, tags]])
    files = Files(train=(str(path),), validation=(str(path),))
    task = Task(head="token_classification", files=files, text_columns=("text",), label_column="tags")
    split = load_split(task, "train")
    assert (split["text"][0], split["tags"][0]) == (["Anna", "is", "here"], expected)


def test_rows_without_a_text_are_skipped_on_request_and_the_others_keep_their_numbers() -> None:
    Path("t.jsonl").write_text("".join(f'{{"text": {text}, "label": "a"}}\n' for text in ('"x"', "null", '" "', '"y"')))
    files = Files(train=("t.jsonl",), validation=("t.jsonl",))
    with pytest.raises(DataError, match=r"t\.jsonl: row 2 of split 'train' has no text"):
        load_split(Task(files=files, text_columns=("text",)), "train")
    task = Task(files=files.model_copy(update={"skip_empty": True}), text_columns=("text",))
    split = load_split(task, "train")
    assert split["text"][:] == ["x", "y"]
    assert locate_rows(task, split, [1]) == "t.jsonl: row 4"


def split_task(path: Path, **splits: Any) -> Task:
    return Task(
        files=Files(train=(str(path),)),
        text_columns=("text",),
        split_column="part",
        splits=Splits.model_validate(splits),
    )


def test_split_column_divides_the_rows_of_a_file(write_csv: WriteCsv) -> None:
    rows = [[f"text {at}", "ab"[at % 2], ["train", "dev", "test", "unused"][at % 4]] for at in range(16)]
    path = write_csv("all.csv", ["text", "label", "part"], rows)
    task = split_task(path, validation="dev")
    split = load_split(task, "validation")
    assert split["text"][:] == ["text 1", "text 5", "text 9", "text 13"]
    assert locate_rows(task, split, [1]) == f"{path}: row 6"
    assert len(load_split(task, "test")) == len(load_split(task, "unused")) == 4
    held_out = split_task(path, validation=None)
    assert {*load_split(held_out, "validation")["text"]} < {"text 0", "text 4", "text 8", "text 12"}
    with pytest.raises(
        DataError, match=r"no row has 'valid' in column 'part', expected one of \['dev', .*Set task\.splits"
    ):
        load_split(split_task(path, validation="valid"), "validation")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("label_columns: [a, b]", "`label_columns` requires `problem: multi_label`, found single_label"),
        ("label_columns: [a, b], problem: multi_label, labels: [a]", "`labels` differs from `label_columns`"),
        ("head: question_answering, label_columns: [a], text_columns: [q, p]", "requires the head text_classification"),
        ("span_column: spans", "`span_column` requires the head token_classification"),
        ("answer_start_column: s", "`answer_start_column` requires the head question_answering"),
        ("sentence_column: s", "`sentence_column` requires the head token_classification"),
        ("head: token_classification, sentence_column: s, span_column: p", "expected one of them"),
        ("split_column: part, files: {train: a.csv, test: b.csv}", "`split_column` divides the training files"),
    ],
)
def test_keys_of_layouts_that_do_not_fit_are_refused(keys: str, message: str) -> None:
    files = "" if "files" in keys else "files: {train: a.csv}, "
    texts = "" if "text_columns" in keys else "text_columns: [text], "
    Path("r.yaml").write_text(f"task: {{{files}{texts}{keys}}}\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe("r.yaml")


def answer_task(**columns: list[Any]) -> tuple[Task, Dataset]:
    Path("qa.jsonl").write_text(
        "".join(f"{json.dumps(dict(zip(columns, row, strict=True)))}\n" for row in zip(*columns.values(), strict=True))
    )
    task = Task(
        head="question_answering",
        files=Files(train=("qa.jsonl",), validation=("qa.jsonl",)),
        text_columns=("q", "p"),
        label_column="a",
        answer_start_column="s",
    )
    return task, load_split(task, "train")


def test_starts_of_answers_in_a_column_decide_which_occurrence_is_meant() -> None:
    texts = {"q": ["where"] * 4, "p": ["Oslo or Oslo"] * 4}
    task, rows = answer_task(**texts, a=["Oslo", "Oslo", "", None], s=["8", "0", "-1", None])
    assert rows["a"][:] == [
        {"text": ["Oslo"], "answer_start": [8]},
        {"text": ["Oslo"], "answer_start": [0]},
        *[{"text": [], "answer_start": []}] * 2,
    ]
    assert answer_spans(task, rows) == [(8, 12), (0, 4), None, None]
    _, rows = answer_task(**texts, a=[["Oslo", "or"]] * 4, s=[[8, 5]] * 4)
    assert rows["a"][0] == {"text": ["Oslo", "or"], "answer_start": [8, 5]}


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (["0", "two"], r"row 2 has 'two' in column 's', expected the offset of the answer in the passage"),
        (["0", "-1"], r"row 2 has '-1' in column 's'"),
        (["0", None], r"row 2 has None in column 's'"),
        (["0", "9" * 20], r"row 2 has '9999\d*' in column 's'"),
        (["0", "[0, 8]"], r"row 2 has 1 answers in column 'a', but 2 starts in column 's'"),
    ],
)
def test_starts_that_are_no_offsets_are_refused(starts: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        answer_task(q=["where"] * 2, p=["Oslo or Oslo"] * 2, a=["Oslo"] * 2, s=starts)


def test_bracketed_answer_next_to_a_single_start_is_not_a_list() -> None:
    texts = {"q": ["when"] * 4, "p": ["from [1, 2] to [1992]"] * 4}
    task, rows = answer_task(**texts, a=["[1992]", "[1, 2]", "['from', 'to']", "[]"], s=["15", "5", "[0, 12]", "0"])
    assert [answers["text"] for answers in rows["a"][:]] == [["[1992]"], ["[1, 2]"], ["from", "to"], []]
    assert answer_spans(task, rows) == [(15, 21), (5, 11), (0, 4), None]


def test_answers_that_have_starts_need_no_column_of_starts() -> None:
    answers = {"text": ["Oslo"], "answer_start": [8]}
    with pytest.raises(DataError, match=r"row 1 has \{'text'.* in column 'a'.*; remove task\.answer_start_column"):
        answer_task(q=["where"] * 2, p=["Oslo or Oslo"] * 2, a=[answers] * 2, s=[8] * 2)


def test_missing_column_of_starts_is_named() -> None:
    with pytest.raises(DataError, match=r"no column 's'.*task\.answer_start_column"):
        answer_task(q=["where"] * 2, p=["Oslo or Oslo"] * 2, a=["Oslo"] * 2, start=[0, 8])
