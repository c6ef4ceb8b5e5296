"""Checking a recipe's data finds what is wrong with it, and nothing in clean data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.check import check
from bertcli.errors import DataError
from bertcli.finetuning.data_check import DataCheck, Finding, describe, main_script

from ..conftest import QUIET

LONG = "the quick brown fox jumps over the lazy dog and then sleeps in the sun all day long"
WriteCsv = Callable[..., Path]


def clean_rows(number: int, prefix: str) -> list[list[object]]:
    nouns = ["film", "soup", "train", "day", "book", "harbour"]
    return [[f"{prefix} {nouns[at % 6]} {at * 7919 % 997} was {'good' if at % 2 else 'bad'}", ["neg", "pos"][at % 2]]
            for at in range(number)]  # fmt: skip


@pytest.fixture
def run_check(write_csv: WriteCsv, encoder: Path) -> Callable[..., DataCheck]:
    """Check a task with these training and validation rows."""

    def run(train: list[list[object]], validation: list[list[object]], *keys: str, **task: Any) -> DataCheck:
        for name, rows in (("train", train), ("dev", validation)):
            write_csv(f"{name}.csv", ["text", "label"], rows)
        files = {"train": "train.csv", "validation": "dev.csv"}
        recipe = {"task": {"files": files, "text_columns": ["text"], **task}, "model": {"name": str(encoder)}}
        Path("r.yaml").write_text(json.dumps(recipe))
        return check("r.yaml", ["data.max_length=32", *keys], mirror=None, console=QUIET)

    return run


def findings(result: DataCheck, topic: str) -> list[Finding]:
    folder = f"{Path.cwd()}/"
    return [
        replace(finding, message=finding.message.replace(folder, ""))
        for finding in result.findings
        if finding.topic == topic
    ]


def test_clean_data_has_no_findings(run_check: Callable[..., DataCheck]) -> None:
    result = run_check(clean_rows(40, "a"), clean_rows(20, "one"))
    assert [finding for finding in result.findings if finding.topic != "unknown tokens"] == []
    assert result.splits["train"].labels == {"neg": 20, "pos": 20}
    assert result.splits["train"].scripts == {"LATIN": 40}


def test_duplicates_leaks_and_conflicts_are_counted(run_check: Callable[..., DataCheck]) -> None:
    train = [*clean_rows(40, "a"), ["Fine, film!", "pos"], ["fine film", "pos"], ["FINE film", "neg"], [LONG, "pos"]]
    dev = [*clean_rows(20, "one"), ["fine film ?", "pos"], [LONG.replace("dog", "cat"), "pos"], ["a fine thing", "odd"]]
    result = run_check(train, dev, "data.skip_unlabelled=true", labels=["neg", "pos", "odd"])
    (duplicates,) = findings(result, "duplicates")
    assert (duplicates.count, duplicates.split) == (2, "train")
    assert "train.csv: rows 41, 42 (train)" in duplicates.message
    (leak,) = findings(result, "leak")
    assert leak.message == (
        "1 row (4.35%) with the text of a training row, for example dev.csv: row 21 (validation) and "
        "train.csv: row 41 (train)"
    )
    (near,) = findings(result, "near leak")
    assert near.count == 1
    assert "dev.csv: row 22 (validation) and train.csv: row 44 (train)" in near.message
    (conflict,) = findings(result, "two labels")
    assert (conflict.count, "rows" in conflict.message) == (1, False)
    assert [finding.message for finding in findings(result, "labels")] == [
        "in validation, but not in training: odd (1)"
    ]


def test_text_of_a_training_row_is_not_also_a_near_duplicate_of_another(run_check: Callable[..., DataCheck]) -> None:
    near = LONG.replace("dog", "cat")
    result = run_check([*clean_rows(20, "a"), [LONG, "pos"], [near, "pos"]], [*clean_rows(20, "one"), [near, "pos"]])
    assert findings(result, "leak")[0].count == 1
    assert findings(result, "near leak") == []
    assert findings(result, "near duplicates")[0].count == 1


def test_texts_lengths_scripts_and_labels_are_reported(run_check: Callable[..., DataCheck]) -> None:
    train = [*clean_rows(40, "a"), ["", "pos"], ["Хороший фильм", "Pos"]]
    train += [[f"{LONG * 3} {at}", "rare"] for at in range(3)]
    result = run_check(train, clean_rows(20, "one"), "data.max_length=8")
    assert findings(result, "empty") == [
        Finding("empty", "1 row without a text: train.csv: row 41 (train)", 1, "train")
    ]
    assert "CYRILLIC (1), for example train.csv: row 42 (train)" in findings(result, "scripts")[0].message
    assert {finding.message for finding in findings(result, "labels")} == {
        "fewer than 10 in training: rare (3), Pos (1)",
        "in training, but not in validation: rare (3), Pos (1)",
        "differ only in case: pos (21), Pos (1)",
    }
    lengths = findings(result, "lengths")
    summary = result.splits["train"]
    assert summary.cut_share is not None
    assert lengths[0].message == f"{summary.cut_share:.1%} of the rows have more than 8 tokens (data.max_length)"
    assert summary.tokens is not None
    assert summary.tokens[2] > 48


def test_labels_that_look_like_ids_and_missing_ones_are_reported(run_check: Callable[..., DataCheck]) -> None:
    train = [[text, f"id{at}"] for at, (text, _) in enumerate(clean_rows(30, "a"))]
    (column,) = [finding for finding in findings(run_check(train, train), "columns") if finding.split == "train"]
    assert column.message == "30 different labels in 30 rows: column 'label' looks like an ID"
    result = run_check([*clean_rows(30, "a"), ["no label", ""]], clean_rows(20, "one"))
    assert findings(result, "unlabelled")[0].message == "1 row without a label: train.csv: row 31 (train)"


def test_regression_is_summarized_in_its_own_units(run_check: Callable[..., DataCheck]) -> None:
    rows: list[list[object]] = [[text, at / 2] for at, (text, _) in enumerate(clean_rows(21, "a"))]
    result = run_check(rows, rows, problem="regression")
    assert result.splits["train"].numbers == (0.0, 5.0, 10.0)
    assert findings(result, "leak")[0].count == 21


def test_regression_targets_are_read_as_in_training(run_check: Callable[..., DataCheck]) -> None:
    texts = [text for text, _ in clean_rows(22, "a")]
    rows: list[list[object]] = [[text, f"1.00{at},5"] for at, text in enumerate(texts[:10])]
    result = run_check([*rows, [texts[10], ""]], rows, "task.files.decimal=comma", problem="regression")
    assert result.splits["train"].numbers == (1000.5, 1005.0, 1009.5)
    assert result.splits["train"].unlabelled == 1
    assert findings(result, "labels") == findings(result, "two labels") == []
    result = run_check([*rows, [texts[11], "1,234.5"]], rows, "task.files.decimal=comma", problem="regression")
    (finding,) = findings(result, "labels")
    assert "train.csv: row 11 has no finite number in column 'label', found '1,234.5'" in finding.message


def test_labels_that_training_refuses_are_findings(run_check: Callable[..., DataCheck], encoder: Path) -> None:
    rows = clean_rows(20, "a")
    (finding,) = findings(run_check(rows, rows[::2], "task.metrics=[roc_auc]"), "labels")[-1:]
    assert finding.split == "validation"
    assert "the metric roc_auc needs rows with a label and rows without it in split 'validation'" in finding.message
    (finding,) = findings(run_check(rows[::2], rows[::2], "task.labels=[neg,pos]"), "labels")
    assert finding.message == "train.csv: all training rows have the same label, expected at least two labels"
    questions = [{"question": f"{at}?", "choices": ["a", "b", "c"][: 2 + at], "answer": 0} for at in range(2)]
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    task = "head: multiple_choice, text_columns: [question], choice_columns: [choices], label_column: answer"
    files = "files: {train: t.jsonl, validation: t.jsonl}"
    Path("r.yaml").write_text(f"task: {{{task}, {files}}}\nmodel: {{name: {encoder}}}\n")
    result = check("r.yaml", ["data.max_length=32"], mirror=None, console=QUIET)
    assert findings(result, "labels")[0].message == "t.jsonl: row 2 has 3 choices, expected 2, as in row 1"
    assert result.notes == ["rows are numbered as in their files, the first one after any header being row 1"]


def test_tags_and_spans_are_counted(encoder: Path) -> None:
    rows = [
        {"text": "Anna ran", "spans": [[0, 4, "PER"]]},
        {"text": "Oslo is fine", "spans": [[0, 2, "LOC"]]},
        {"text": "a day", "spans": []},
    ]
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = "{train: t.jsonl, validation: t.jsonl}"
    task = f"head: token_classification, text_columns: [text], span_column: spans, files: {files}"
    Path("r.yaml").write_text(f"task: {{{task}, labels: [O, B-PER, I-PER, B-LOC]}}\nmodel: {{name: {encoder}}}\n")
    result = check("r.yaml", ["data.max_length=32"], mirror=None, console=QUIET)
    assert result.splits["train"].labels == {"PER": 1}
    assert findings(result, "spans")[0].message == (
        "1 spans begin or end inside a word, and train nothing: t.jsonl: row 2 (train)"
    )


def test_missing_label_columns_are_errors(
    run_check: Callable[..., DataCheck], write_csv: WriteCsv, encoder: Path
) -> None:
    rows = clean_rows(20, "a")
    message = r"expected the label column 'lable'\. Did you mean label\? Set task\.label_column"
    for keys in ((), ("task.labels=[neg,pos]",), ("task.problem=regression",)):
        with pytest.raises(DataError, match=message):
            run_check(rows, rows, "task.label_column=lable", *keys)
    run_check(rows, rows)
    write_csv("dev.csv", ["text", "lable"], rows)
    with pytest.raises(DataError, match=r"dev\.csv: found columns .* expected the label column 'label'"):
        check("r.yaml", [], mirror=None, console=QUIET)
    Path("t.jsonl").write_text(json.dumps({"text": "Anna ran", "label": [[0, 4, "PER"]]}) + "\n")
    task = "head: token_classification, text_columns: [text], span_column: lable, files: {train: t.jsonl}"
    Path("r.yaml").write_text(f"task: {{{task}}}\nmodel: {{name: {encoder}}}\n")
    with pytest.raises(DataError, match=r"no column 'lable'; .* Did you mean label\? Set task\.span_column"):
        check("r.yaml", [], mirror=None, console=QUIET)


def test_entities_that_begin_inside_are_reported(encoder: Path) -> None:
    Path("t.conll").write_text("Anna B-PER\nBell I-PER\nran O\n\nOslo I-LOC\nis O\n\n" * 2 + "a O\nb B-LOC\n")
    files = "{train: t.conll, validation: t.conll}"
    task = f"head: token_classification, text_columns: [tokens], label_column: tags, files: {files}"
    Path("r.yaml").write_text(f"task: {{{task}}}\nmodel: {{name: {encoder}}}\n")
    result = check("r.yaml", ["data.max_length=32"], mirror=None, console=QUIET)
    tags = [finding.message for finding in findings(result, "tags") if finding.split == "train"]
    assert tags == [
        "2 rows with an entity that begins with I-, not B-: t.conll: rows 2, 4 (train)",
        "each training row has an entity, so the model may learn to always find one",
    ]


@pytest.mark.parametrize(
    ("text", "script"), [("abc Я", "LATIN"), ("東京は", "CJK"), ("Привет a", "CYRILLIC"), ("12 !", "NONE")]
)
def test_main_script(text: str, script: str) -> None:
    assert main_script(text) == script


def test_command_prints_text_or_json(run_check: Callable[..., DataCheck]) -> None:
    rows = clean_rows(20, "a")
    lines = list(describe(run_check(rows, rows), "bertcli finetune r.yaml"))
    assert lines[0] == "train           20 rows; neg 10 (50.0%), pos 10 (50.0%)"
    result = CliRunner().invoke(app, ["check", "r.yaml", "data.max_length=32", "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    assert content["splits"]["train"]["rows"] == 20
    assert "leak" in {finding["topic"] for finding in content["findings"]}
    text = CliRunner().invoke(app, ["check", "r.yaml", "data.max_length=32", "--quiet"])
    assert text.output.startswith(lines[0])
    number = len(content["findings"])
    assert text.output.splitlines()[-2:] == [
        f"verdict         {number} findings",
        "next            bertcli finetune r.yaml data.max_length=32",
    ]


@pytest.mark.parametrize("key", ["training.learning_rate=[1e-3, 1e-4]", "search.epochs={int: [1, 4]}"])
def test_data_of_a_grid_or_search_are_checked(run_check: Callable[..., DataCheck], key: str) -> None:
    assert len(run_check(clean_rows(20, "a"), clean_rows(10, "one"), key).splits) == 2


def test_report_of_clean_data_says_so() -> None:
    assert [*describe(DataCheck("t", 32), "bertcli finetune r.yaml")] == [
        "verdict         no findings",
        "next            bertcli finetune r.yaml",
    ]


def test_shares_of_several_labels_are_of_the_rows(run_check: Callable[..., DataCheck]) -> None:
    labels = ["a", "a,b", "a,b", ""] * 5
    rows: list[list[object]] = [[text, label] for (text, _), label in zip(clean_rows(20, "a"), labels, strict=True)]
    result = run_check(rows, rows, problem="multi_label")
    first = next(describe(result, ""))
    assert first == "train           20 rows; a 15 (75.0%), b 10 (50.0%); 5 rows without any label"


def test_most_frequent_unknown_words_are_named(run_check: Callable[..., DataCheck]) -> None:
    rows: list[list[object]] = [[f"{text} 東 京", label] for text, label in clean_rows(20, "a")]
    (finding,) = [each for each in findings(run_check(rows, rows), "unknown tokens") if each.split == "train"]
    assert "most often 東 (20), 京 (20)" in finding.message
    assert "model.add_tokens" in finding.message
