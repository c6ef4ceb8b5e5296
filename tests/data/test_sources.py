"""Loading datasets, and the messages when that fails."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertcli.data.sources import load_split
from bertcli.errors import DataError
from bertcli.tasks.task import Task


def task_of(path: Path | str, **rest: Any) -> Task:
    return Task.model_validate({"files": {"train": str(path)}, "text_columns": ("text",), **rest})


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    import json

    import pyarrow
    from pyarrow import parquet

    rows = [{"text": "007", "label": "1"}, {"text": 'say "no"', "label": "no"}, {"text": "é, ü", "label": "1"}]
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == "csv":
        path.write_text('text,label\n007,1\n"say ""no""",no\n"é, ü",1\n', "utf-8")
    elif ending == "tsv":
        path.write_text('text\tlabel\n007\t1\nsay "no"\tno\né, ü\t1\n', "utf-8")
    else:
        text = json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, "utf-8")
    task = Task.model_validate({"files": {"test": str(path)}, "text_columns": ("text",)})
    assert load_split(task, "test").to_list() == rows


def test_held_out_rows_are_fixed_and_not_in_the_training_split(reviews: Path) -> None:
    task = task_of(reviews, held_out_fraction=0.25)
    train, validation = load_split(task, "train")["text"][:], load_split(task, "validation")["text"][:]
    assert (len(train), len(validation)) == (30, 10)
    assert not set(train) & set(validation)
    assert validation == load_split(task, "validation")["text"][:]


def test_mirror_is_used_before_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "mirror" / "datasets" / "some" / "set"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text("text,label\na,x\nb,y\n", "utf-8")
    task = Task.model_validate({"dataset": "some/set", "text_columns": ("text",)})
    assert load_split(task, "train", tmp_path / "mirror")["text"][:] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("txt,label\na,b\n", "no column 'text'"),
        ("text,label\n", "no rows"),
        ("", "cannot read"),
        ("text,label\na,b,c\n", "cannot read"),
        ("text,label\nna\xefve,x\n", "iconv"),
    ],
)
def test_unreadable_file_gives_one_clear_message(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content.encode("latin1"))
    task = Task.model_validate({"files": {"test": str(path)}, "text_columns": ("text",)})
    with pytest.raises(DataError, match=message):
        load_split(task, "test")


def test_missing_text_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": null, "label": "y"}\n', "utf-8")
    task = Task.model_validate({"files": {"test": str(path)}, "text_columns": ("text",)})
    with pytest.raises(DataError, match="row 2 of split 'test' has no text in column 'text'"):
        load_split(task, "test")


def test_group_by_names_the_row_without_a_value(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "title": "x"}\n{"text": "b", "title": null}\n{"text": "c", "title": "y"}\n', "utf-8")
    with pytest.raises(DataError, match="row 2 has no value in column 'title'"):
        load_split(task_of(path, group_by="title"), "train")


def test_held_out_fraction_leaves_a_training_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{row}", "label": "{row % 2}"}}\n' for row in range(10)), "utf-8")
    task = task_of(path, held_out_fraction=0.95)
    assert [len(load_split(task, split)) for split in ("train", "validation")] == [1, 9]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_row_longer_than_a_block_is_read(tmp_path: Path, ending: str) -> None:
    path, text = tmp_path / f"rows.{ending}", "word " * 600_000
    rows = [f'{{"text": "{text}", "label": "x"}}', '{"text": "b", "label": "y"}']
    path.write_text("\n".join(rows if ending == "jsonl" else ["text,label", f"{text},x", "b,y"]) + "\n", "utf-8")
    texts = load_split(task_of(path, held_out_fraction=0.5), "train")["text"][:]
    texts += load_split(task_of(path, held_out_fraction=0.5), "validation")["text"][:]
    assert sorted(map(len, texts)) == [1, 3_000_000]


def test_list_with_a_missing_word_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"tokens": ["a", null]}\n{"tokens": ["b"]}\n', "utf-8")
    with pytest.raises(DataError, match="a list in column 'tokens' of split 'train' has a missing text"):
        load_split(task_of(path, head="token_classification", text_columns=("tokens",)), "train")


def test_missing_file_unknown_format_and_missing_split_are_named(tmp_path: Path, reviews: Path) -> None:
    with pytest.raises(DataError, match="found no file"):
        load_split(task_of(tmp_path / "gone.csv"), "train")
    (tmp_path / "a.xlsx").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match=r"expected a file that ends in"):
        load_split(task_of(tmp_path / "a.xlsx"), "train")
    with pytest.raises(DataError, match="no files for split 'test'"):
        load_split(task_of(reviews), "test")


def test_unreachable_hub_suggests_a_mirror() -> None:
    task = Task.model_validate({"dataset": "no-such-org/no-such-set", "text_columns": ("text",)})
    with pytest.raises(DataError, match="--mirror"):
        load_split(task, "train")


def test_files_with_different_columns_are_rejected(write_csv: Callable[..., Path]) -> None:
    paths = [write_csv("a.csv", ["text", "label"], [["a", 1]]), write_csv("b.csv", ["text", "n"], [["b", 1]])]
    task = Task.model_validate({"files": {"test": [str(path) for path in paths]}, "text_columns": ("text",)})
    with pytest.raises(DataError, match="has the columns"):
        load_split(task, "test")
