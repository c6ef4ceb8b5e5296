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
    _row(
        "entities",
        ("tokens",),
        "names in made-up sentences",
        head="token_classification",
        label_column="tags",
        labels=("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"),
    ),
    _row(
        "questions",
        ("question", "context"),
        "who did it, and when, in made-up passages?",
        head="question_answering",
        label_column="answers",
        id_column="id",
    ),
    _row(
        "open-questions",
        ("question", "context"),
        "the same, where some questions have no answer",
        head="question_answering",
        label_column="answers",
        id_column="id",
        unanswerable=True,
    ),
    _row("choices", ("text",), "what kind of thing was it?", head="multiple_choice", choice_columns=("choices",)),
)
