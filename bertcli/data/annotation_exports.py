"""Exports of annotation tools as plain rows: Label Studio's JSON, spaCy's training examples, rejections in Prodigy.

Other exports (doccano, GLiNER, Label Studio's JSON-MIN) are rows already.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bertcli.errors import DataError

Row = dict[str, Any]
PRODIGY_HASH, PRODIGY_REJECTIONS = "_task_hash", ("reject", "ignore")
PRODIGY_LABELS = ("spans", "label", "accept")  # columns that a rejected row does not answer


def read_prodigy_row(row: Row) -> Row:
    """Return a row without its labels if it is an example that was rejected or ignored in Prodigy, else unchanged."""
    if PRODIGY_HASH in row and row.get("answer") in PRODIGY_REJECTIONS:
        return row | {name: None for name in PRODIGY_LABELS if name in row}
    return row


def is_spacy_example(value: Any) -> bool:
    """Return whether a value is a text and its annotations, as in spaCy's training data."""
    is_pair = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict)
    return is_pair and bool({"entities", "cats"} & value[1].keys())


def read_spacy_example(value: Any) -> Any:
    """Return `["text", {"entities": […]}]` as a row with these keys; return any other value unchanged."""
    return {"text": value[0], **value[1]} if is_spacy_example(value) else value


def is_label_studio(content: Any) -> bool:
    """Return whether JSON content is an export of Label Studio: a list of tasks with `data` and `annotations`."""
    return isinstance(content, list) and bool(content) and all(map(_is_task, content))


def _is_task(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("data"), dict) and isinstance(_annotations(entry), list)


def _annotations(task: Row) -> Any:
    return task.get("annotations", task.get("completions"))


def read_label_studio(content: Iterable[Row], location: str) -> list[Row]:
    """Return a row for each task of Label Studio's JSON export, with the columns of its JSON-MIN export.

    The columns are those of the task's `data` and one for each control, such as `label`: a list of spans (empty if the
    annotator marked none), a choice, or a list of several choices. Tasks without an annotation have no label.

    Raises:
        DataError: if a task has annotations that differ, and none is the ground truth; the message names the entry.
    """
    rows, are_annotated = [], []
    span_columns: set[str] = set()
    for number, task in enumerate(content, start=1):
        annotations = [annotation for annotation in _annotations(task) if not annotation.get("was_cancelled")]
        annotations = [entry for entry in annotations if entry.get("ground_truth")][:1] or annotations
        answers = [_answers(annotation.get("result") or [], span_columns) for annotation in annotations]
        if any(answer != answers[0] for answer in answers):
            raise DataError(
                f"{location}, entry {number}: found {len(answers)} annotations that differ, expected one; mark one as "
                "ground truth in Label Studio, or remove the task"
            )
        rows.append(task["data"] | (answers[0] if answers else {}))
        are_annotated.append(bool(answers))
    for row, is_annotated in zip(rows, are_annotated, strict=True):
        for name in span_columns if is_annotated else ():
            row.setdefault(name, [])
    return rows


def _answers(results: Iterable[Row], span_columns: set[str]) -> Row:
    """Return the answer of each control of an annotation; add the controls that mark spans to `span_columns`."""
    answers: Row = {}
    for result in results:
        name, kind, value = result.get("from_name"), result.get("type"), result.get("value")
        if name is None or not isinstance(value, dict) or kind not in value:  # such as a relation between two spans
            continue
        if str(kind).endswith("labels"):
            span_columns.add(name)
            span = {key: value.get(key) for key in ("start", "end", "text")} | {"label": value[kind]}
            answers.setdefault(name, []).append(span)
        else:
            choices = value[kind]
            answers[name] = choices[0] if isinstance(choices, list) and len(choices) == 1 else choices
    return answers
