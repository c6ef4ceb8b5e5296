"""Rows over the embedded sample language (`bertcli.data.sample`): one for each kind of answer."""

from __future__ import annotations

from bertcli.tasks.task import Task


def _row(name: str, text_columns: tuple[str, ...], description: str, **rest: object) -> Task:
    fields = {"dataset": "sample", "config": name, "text_columns": text_columns, "description": description}
    return Task.model_validate({"name": f"sample/{name}", **fields, **rest})


ROWS = (
    _row("sentiment", ("text",), "made-up reviews", labels=("negative", "positive"), metrics=("accuracy",)),
    _row(
        "inference",
        ("premise", "hypothesis"),
        "does one made-up sentence follow from another?",
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy", "f1_macro"),
    ),
    _row("similarity", ("sentence1", "sentence2"), "how alike are two made-up sentences?", problem="regression"),
    _row(
        "topics",
        ("text",),
        "which topics does a made-up text touch?",
        problem="multi_label",
        labels=("animals", "food", "travel", "weather"),
    ),
)
