"""Scores do not depend on the label IDs of the model."""

from __future__ import annotations

import pytest

from bertcli.heads.text_classification import TextClassification
from bertcli.inference.scoring import positive_label_id
from bertcli.tasks.task import Task


@pytest.mark.parametrize(
    ("task_labels", "model_labels", "expected"),
    [
        (("no", "yes"), ("no", "yes"), 1),
        (("no", "yes"), ("yes", "no"), 0),
        (("a", "b", "c"), ("c", "b", "a"), 1),
        ((), ("a", "b"), 1),
    ],
)
def test_binary_f1_scores_the_second_label_of_the_task(
    task_labels: tuple[str, ...], model_labels: tuple[str, ...], expected: int
) -> None:
    task = Task(dataset="x", text_columns=("text",), labels=task_labels)
    assert positive_label_id(task, TextClassification("single_label", model_labels)) == expected
