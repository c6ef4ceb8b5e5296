"""Loading datasets, and the messages when that fails."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertcli.data.sources import column_names, load_split, load_training_rows, locate_rows, row_groups
from bertcli.data.table_files import read_files
from bertcli.errors import DataError
from bertcli.tasks.task import FoldTask, Task


def task_of(path: Path | str, **rest: Any) -> Task:
    return Task.model_validate({"files": {"train": str(path)}, "text_columns": ("text",), **rest})


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
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


def test_replaced_files_and_another_mirror_with_the_same_readme_are_not_read_from_the_cache(tmp_path: Path) -> None:
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.jsonl}\n---\n"
    task = Task(dataset="some/set", text_columns=("text",))

    def texts(mirror: str, *written: str) -> list[str]:
        folder = tmp_path / mirror / "datasets" / "some" / "set"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(readme)
        (folder / "train.jsonl").write_text("".join(json.dumps({"text": text, "label": 0}) + "\n" for text in written))
        return load_split(task, "train", tmp_path / mirror)["text"][:]

    assert texts("one", "a", "b") == ["a", "b"]
    assert texts("one", "c", "d", "e") == ["c", "d", "e"]
    assert texts("two", "x") == ["x"]
    assert texts("one", "a", "b") == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("txt,label\na,b\n", "no column 'text'"),
        ("text,label\n", "no rows"),
        ("", r"bad\.csv is empty, expected a header line with the column names"),
        ("text,label\na,b,c\n", r"bad\.csv:2: found 3 values, separated by comma, expected 2"),
        ("text,label\nna\xefve,x\n", r"bad\.csv:2: .*task\.files\.encoding=windows-1252"),
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


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("key", ["id_column", "group_by", "text_columns"])
def test_misspelled_column_is_refused_with_the_closest_name(tmp_path: Path, ending: str, key: str) -> None:
    import pyarrow
    from pyarrow import parquet

    path, rows = tmp_path / f"rows.{ending}", [{"text": "a", "label": "x", "title": "t", "qid": "7"}] * 3
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == "csv":
        path.write_text("text,label,title,qid\n" + "a,x,t,7\n" * 3)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    name, closest = {"id_column": ("quid", "qid"), "group_by": ("titel", "title"), "text_columns": ("texts", "text")}[
        key
    ]
    with pytest.raises(DataError, match=rf"has no column '{name}'; .*Did you mean {closest}\? Set task\.{key}"):
        load_split(task_of(path, **{key: [name] if key == "text_columns" else name}), "train")


def test_group_by_column_may_be_missing_from_files_of_which_no_rows_are_held_out(tmp_path: Path) -> None:
    paths = {split: write_rows(tmp_path / f"{split}.csv", ["x", "y"]) for split in ("train", "validation", "test")}
    files = {split: str(path) for split, path in paths.items()}
    task = Task.model_validate({"files": files, "text_columns": ("text",), "group_by": "title"})
    assert [load_split(task, split)["label"][:] for split in files] == [["x", "y"]] * 3


def test_group_by_column_of_other_splits_is_kept_if_they_have_it(tmp_path: Path) -> None:
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation", "test")}
    for path in files.values():
        Path(path).write_text("text,label,title,other\na,x,T,1\nb,y,,2\n")
    Path(files["test"]).write_text("text,label,other\na,x,1\nb,y,2\n")
    task = Task.model_validate({"files": files, "text_columns": ("text",), "group_by": "title"})
    assert row_groups(task, load_split(task, "validation")) == ["T", None]
    for split in ("train", "test"):  # no row of the training files is held out
        rows = load_split(task, split)
        assert column_names(rows) == ["text", "label"]
        assert row_groups(task, rows) is None


def test_group_by_treats_nan_as_a_missing_value(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    years = pyarrow.array([1.0, float("nan"), 2.0])
    parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "label": ["x", "y", "x"], "year": years}), path)
    with pytest.raises(DataError, match=r"rows\.parquet: row 2 has no value in column 'year'; add one"):
        load_split(task_of(path, group_by="year"), "train")


GROUPS: list[tuple[object, object, object]] = [
    (["a", "fine"], ["a", "dull"], ["fine", "a"]),
    ({"book": 1, "part": "x"}, {"book": 1, "part": "y"}, {"book": 2, "part": "x"}),
    ([["a"], []], [[], ["a"]], [["a"]]),
]


@pytest.mark.parametrize("groups", GROUPS)
def test_group_by_a_column_of_lists_or_objects_keeps_equal_values_in_one_split(
    tmp_path: Path, groups: tuple[object, ...]
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [{"text": f"t{row}", "label": "x", "group": groups[row % 3]} for row in range(12)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    task = task_of(path, group_by="group", held_out_fraction=0.3)
    train, validation = (load_split(task, split)["group"][:] for split in ("train", "validation"))
    assert (len(train), len(validation)) == (8, 4)
    assert all(group not in train for group in validation)


def test_group_by_tokens_keeps_equal_sentences_of_a_conll_file_in_one_split(tmp_path: Path) -> None:
    """As the note on validation rows with the same text as a training row advises."""
    path = tmp_path / "rows.conll"
    path.write_text("".join(f"{word} B-PER\ncame O\n\n" for word in ("anna", "ben", "carl") * 4), "utf-8")
    columns: dict[str, Any] = {"text_columns": ("tokens",), "label_column": "tags"}
    task = task_of(path, head="token_classification", group_by="tokens", held_out_fraction=0.3, **columns)
    train, validation = (load_split(task, split)["tokens"][:] for split in ("train", "validation"))
    assert len(validation) == 4
    assert all(words not in train for words in validation)


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
    with pytest.raises(DataError, match=r"expected a file whose name ends in"):
        load_split(task_of(tmp_path / "a.xlsx"), "train")
    with pytest.raises(DataError, match=r"split 'test' has no files, expected one of \['train', 'validation'\]"):
        load_split(task_of(reviews), "test")  # validation rows are held out


def test_unreachable_hub_suggests_a_mirror() -> None:
    task = Task.model_validate({"dataset": "no-such-org/no-such-set", "text_columns": ("text",)})
    with pytest.raises(DataError, match="--mirror"):
        load_split(task, "train")


def test_files_with_different_columns_are_rejected(write_csv: Callable[..., Path]) -> None:
    paths = [write_csv("a.csv", ["text", "label"], [["a", 1]]), write_csv("b.csv", ["text", "n"], [["b", 1]])]
    task = Task.model_validate({"files": {"test": [str(path) for path in paths]}, "text_columns": ("text",)})
    with pytest.raises(DataError, match=r"b\.csv has the columns \['text', 'n'\], but .*\['text', 'label'\]"):
        load_split(task, "test")
    for name, number in (("a", 0), ("b", 0.5)):
        row = {"text": "a", "label": {"x" * 90: number}}
        paths[name == "b"] = paths[0].with_name(f"{name}.jsonl")
        paths[name == "b"].write_text(json.dumps(row) + "\n")
    task = Task.model_validate({"files": {"test": [str(path) for path in paths]}, "text_columns": ("text",)})
    with pytest.raises(DataError, match=r"b\.jsonl has struct<x{72}… in column 'label', but .* has struct<x{72}…"):
        load_split(task, "test")


def test_rows_are_selected_without_progress_bars(
    write_csv: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_csv("a.csv", ["text", "label", "split"], [["a", 1, "train"], ["b", 0, "train"], ["c", 1, "dev"]])
    fields = {"files": {"train": str(path)}, "text_columns": ("text",), "split_column": "split"}
    assert len(load_split(Task.model_validate(fields), "train")) == 2
    assert capfd.readouterr().err == ""


def write_rows(path: Path, labels: list[str]) -> Path:
    path.write_text("text,label\n" + "".join(f"t{row},{label}\n" for row, label in enumerate(labels, 1)), "utf-8")
    return path


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_held_out_rows_are_stratified_by_label(tmp_path: Path, fraction: float) -> None:
    counts = {"a": 60, "b": 30, "c": 10}
    path = write_rows(tmp_path / "rows.csv", [label for label, count in counts.items() for _ in range(count)])
    task = task_of(path, held_out_fraction=fraction)
    train, validation = (load_split(task, split)["label"][:] for split in ("train", "validation"))
    assert len(validation) == 100 * fraction
    for label, count in counts.items():
        assert abs(validation.count(label) - fraction * count) < 1
        assert train.count(label) + validation.count(label) == count


def test_label_with_one_row_is_never_held_out(tmp_path: Path) -> None:
    for row in range(20):
        labels = ["a", "b"] * 10
        labels[row] = "rare"
        path = write_rows(tmp_path / "rows.csv", labels)
        for fraction, num_rows in ((0.1, 2), (0.6, 12), (0.8, 16)):
            task = task_of(path, held_out_fraction=fraction)
            assert "rare" in load_split(task, "train")["label"][:]
            assert len(load_split(task, "validation")) == num_rows


def test_rows_of_a_file_in_a_held_out_split_are_named_by_their_number_in_the_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", [f"label {row % 2}" for row in range(40)])
    task = task_of(path)
    for split in ("train", "validation"):
        rows = load_split(task, split)
        for index, text in enumerate(rows["text"][:]):
            assert locate_rows(task, rows, [index]) == f"{path}: row {text[1:]}"


def test_rows_of_several_files_are_named_with_their_file(tmp_path: Path) -> None:
    paths = [str(write_rows(tmp_path / name, ["a", "b"] * 10)) for name in ("a.csv", "b.csv")]
    task = Task.model_validate({"files": {"train": paths}, "text_columns": ("text",)})
    rows = load_split(task, "validation")
    expected = [f"{path}: row {text[1:]}" for path, text in zip(rows["__file__"][:], rows["text"][:], strict=True)]
    assert [locate_rows(task, rows, [index]) for index in range(len(rows))] == expected
    whole = load_training_rows(task)
    assert locate_rows(task, whole, [1, 20, 39]) == f"{paths[0]}: rows 2; {paths[1]}: rows 1, 20"


def test_first_ten_rows_without_text_are_named_with_their_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n' + '{"text": null, "label": "y"}\n' * 12, "utf-8")
    with pytest.raises(DataError, match=r"rows 2, 3, .* 11, … \(12 rows\) of split 'train' have no text in column"):
        load_split(task_of(path), "validation")


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_held_out_rows_of_tasks_without_one_label_per_row_are_a_plain_random_sample(
    tmp_path: Path, problem: str
) -> None:
    path = write_rows(tmp_path / "rows.csv", [str(row) for row in range(40)])
    texts = load_split(task_of(path, problem=problem), "validation")["text"][:]
    expected = read_files([str(path)]).train_test_split(test_size=4, seed=13)["test"]["text"][:]
    assert texts == expected


def test_group_by_compares_values_as_written_without_surrounding_spaces(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label,title\n" + "".join(f"t,a,{title}\n" for title in ["007", "7", "007 ", "7"]))
    task = task_of(path, group_by="title", held_out_fraction=0.5)
    titles = {split: {title.strip() for title in load_split(task, split)["title"]} for split in ("train", "validation")}
    assert len(titles["train"]) == len(titles["validation"]) == 1
    assert titles["train"] != titles["validation"]


@pytest.mark.parametrize("group_by", [None, "title"])
def test_each_training_row_is_in_the_validation_split_of_one_fold(tmp_path: Path, group_by: str | None) -> None:
    path = tmp_path / "rows.csv"
    rows = [f"t{row},{'ab'[row % 2]},{row // 4},u{row}" for row in range(40)]
    path.write_text("text,label,title,id\n" + "\n".join(rows), "utf-8")
    (tmp_path / "other.csv").write_text("text,label\nother,a\n", "utf-8")
    definition = task_of(path, group_by=group_by).model_dump() | {
        "files": {"train": str(path), "validation": str(tmp_path / "other.csv")}
    }
    held_out: list[int] = []
    for fold in range(1, 6):
        task = FoldTask.model_validate(definition | {"num_folds": 5, "fold": fold}, strict=False)
        train, validation = (load_split(task, split) for split in ("train", "validation"))
        assert len(train) == 32
        assert sorted(train["__row__"][:] + validation["__row__"][:]) == [*range(1, 41)]
        assert sorted(validation["label"][:]) == ["a"] * 4 + ["b"] * 4
        if group_by:
            assert not set(train["title"][:]) & set(validation["title"][:])
        assert locate_rows(task, validation, [0]) == f"{path}: row {validation[0]['__row__']}"
        held_out += validation["__row__"][:]
    assert sorted(held_out) == [*range(1, 41)]


def test_more_folds_than_rows_are_refused_with_the_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", ["a", "b"])
    task = FoldTask(**dict(task_of(path)), num_folds=3, fold=1)
    with pytest.raises(DataError, match=r"rows\.csv: found 2 training rows, expected at least 3.*; lower data\.folds"):
        load_split(task, "validation")
