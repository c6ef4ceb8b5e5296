"""JSON that is nested so deeply that a reader would crash the process is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertcli.data.formats import MAX_JSON_DEPTH, check_json_depth
from bertcli.data.prediction_inputs import read_inputs
from bertcli.data.sources import load_split
from bertcli.errors import DataError
from bertcli.tasks.task import Files, Task

DEEP = {"lists": ("[", "]"), "objects": ('{"a": ', "}"), "lines": ("[\n", "]")}
FIRST = '{"text": "a fine film", "label": "good"}\n'


def nested(kind: str, depth: int) -> str:
    return DEEP[kind][0] * depth + "1" + DEEP[kind][1] * depth


@pytest.mark.parametrize("kind", ["lists", "objects"])
@pytest.mark.parametrize("column", ["text", "label", "unused"])
def test_deeply_nested_json_lines_are_refused_with_their_line(tmp_path: Path, kind: str, column: str) -> None:
    path = tmp_path / "deep.jsonl"
    row = {"text": '"a"', "label": '"good"'} | {column: nested(kind, 100_000)}
    path.write_text(FIRST + "{" + ", ".join(f'"{name}": {value}' for name, value in row.items()) + "}\n")
    task = Task(files=Files(train=(str(path),), validation=(str(path),)), text_columns=("text",))
    with pytest.raises(DataError, match=r"deep\.jsonl:2: JSON nested too deeply$"):
        load_split(task, "train")


@pytest.mark.parametrize("kind", DEEP)
def test_deeply_nested_json_in_a_dataset_folder_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "texts").mkdir()
    path = tmp_path / "texts" / "train.jsonl"
    path.write_text(FIRST + f'{{"text": "a", "label": "good", "unused": {nested(kind, 50_000)}}}\n')
    task = Task(dataset=str(path.parent), text_columns=("text",))
    line = MAX_JSON_DEPTH + 1 if kind == "lines" else 2
    with pytest.raises(DataError, match=rf"train\.jsonl:{line}: JSON nested too deeply"):
        load_split(task, "train")


def test_deeply_nested_json_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text(f'[{{"text": "a", "label": {nested("lists", 100_000)}}}]')
    task = Task(files=Files(train=(str(path),)), text_columns=("text",))
    with pytest.raises(DataError, match=r"deep\.json:1: JSON nested too deeply$"):
        load_split(task, "train")


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_predict_refuses_deeply_nested_json(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    path.write_text(f'{{"text": {nested("lists", 100_000)}}}\n')
    with pytest.raises(DataError, match=rf"deep\.{suffix}:1: JSON nested too deeply"):
        list(read_inputs(str(path), suffix, ["text"]))


def test_brackets_in_texts_are_not_nesting(tmp_path: Path) -> None:
    path = tmp_path / "smileys.jsonl"
    path.write_text("".join(json.dumps({"text": ':[ \\" {"'}) + "\n" for _ in range(MAX_JSON_DEPTH)))
    with path.open("rb") as file:
        check_json_depth(file, str(path))
