"""Exports of Label Studio, spaCy and Prodigy are read as rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bertcli.data.formats import read_json, read_jsonl
from bertcli.errors import DataError


def rows_of(content: Any) -> list[dict[str, Any]]:
    return [row for _, row in read_json(json.dumps(content), "x.json")]


def span(start: int, end: int, label: str) -> dict[str, Any]:
    return {"from_name": "ner", "type": "labels", "value": {"start": start, "end": end, "text": "?", "labels": [label]}}


def choice(*names: str) -> dict[str, Any]:
    return {"from_name": "mood", "type": "choices", "value": {"choices": [*names]}}


def task(*results: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    return {"data": {"text": "a b"}, "annotations": [{"result": result} | keys for result in results]}


def test_label_studio_spans_and_choices_become_columns() -> None:
    tasks = [task([span(0, 1, "X"), {"type": "relation"}, choice("good")]), task([choice("good", "bad")]), task()]
    assert rows_of(tasks) == [
        {"text": "a b", "ner": [{"start": 0, "end": 1, "text": "?", "label": ["X"]}], "mood": "good"},
        {"text": "a b", "ner": [], "mood": ["good", "bad"]},  # annotated, without a span
        {"text": "a b"},  # not annotated
    ]


def test_label_studio_annotations_that_differ_are_refused_unless_one_is_the_truth() -> None:
    two = task([choice("good")], [choice("bad")])
    with pytest.raises(DataError, match=r"x\.json, entry 2: found 2 annotations that differ, expected one"):
        rows_of([task([choice("good")]), two])
    two["annotations"][1]["ground_truth"] = True
    assert rows_of([two])[0]["mood"] == "bad"
    two["annotations"][0]["was_cancelled"], two["annotations"][1]["ground_truth"] = True, False
    assert rows_of([two])[0]["mood"] == "bad"
    assert rows_of([task([choice("good")], [choice("good")])])[0]["mood"] == "good"


def test_spacy_examples_are_rows_in_json_and_in_json_lines() -> None:
    examples = [["Anna ran", {"entities": [[0, 4, "PER"]]}], ["He ran", {"entities": []}]]
    expected = [{"text": "Anna ran", "entities": [[0, 4, "PER"]]}, {"text": "He ran", "entities": []}]
    lines = [json.dumps(example) + "\n" for example in examples]
    assert rows_of(examples) == expected
    assert [row for _, row in read_jsonl(lines, "x.jsonl")] == expected
    assert [row for _, row in read_json("".join(lines), "x.jsonl")] == expected
    assert [row for _, row in read_json(lines[0], "x.jsonl")] == expected[:1]


def test_prodigy_rejections_have_no_label() -> None:
    row = {"text": "a", "_task_hash": 1, "spans": [], "label": "X"}
    assert rows_of([row | {"answer": "accept"}]) == [row | {"answer": "accept"}]
    assert rows_of([row | {"answer": "reject"}])[0] == row | {"answer": "reject", "spans": None, "label": None}
    assert rows_of([{"text": "a", "answer": "reject", "label": "X"}])[0]["label"] == "X"  # not from Prodigy
