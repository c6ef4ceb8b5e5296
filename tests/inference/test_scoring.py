"""What a score is of, whatever numbers a model gives its labels."""

from __future__ import annotations

import pytest

from bertcli.heads.text_classification import TextClassification
from bertcli.inference.scoring import positive_number
from bertcli.tasks.task import Task


@pytest.mark.parametrize(
    ("listed", "of_model", "number"),
    [
        (("no", "yes"), ("no", "yes"), 1),
        (("no", "yes"), ("yes", "no"), 0),
        (("a", "b", "c"), ("c", "b", "a"), 1),
        ((), ("a", "b"), 1),
    ],
)
def test_f1_is_of_the_tasks_second_label(listed: tuple[str, ...], of_model: tuple[str, ...], number: int) -> None:
    task = Task(dataset="x", text_columns=("text",), labels=listed)
    assert positive_number(task, TextClassification("single_label", of_model)) == number
