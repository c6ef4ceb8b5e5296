"""Task definitions on the built-in sample language (`bertcli.data.sample`), at least one per head."""

from __future__ import annotations

from bertcli.tasks.task import Task


def _row(name: str, text_columns: tuple[str, ...], description: str, **rest: object) -> Task:
    fields = {"dataset": "sample", "config": name, "text_columns": text_columns, "description": description}
    return Task.model_validate({"name": f"sample/{name}", **fields, **rest})


ROWS = (
    _row(
        "sentiment", ("text",), "sentiment of generated reviews", labels=("negative", "positive"), metrics=("accuracy",)
    ),
    _row(
        "inference",
        ("premise", "hypothesis"),
        "does one generated sentence entail another?",
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy", "f1_macro"),
    ),
    _row("similarity", ("sentence1", "sentence2"), "how similar are two generated sentences?", problem="regression"),
    _row(
        "topics",
        ("text",),
        "topics of generated texts, several per text",
        problem="multi_label",
        labels=("animals", "food", "travel", "weather"),
    ),
    _row(
        "entities",
        ("tokens",),
        "named entities in generated sentences",
        head="token_classification",
        label_column="tags",
        labels=("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"),
    ),
    _row(
        "questions",
        ("question", "context"),
        "questions on generated passages",
        head="question_answering",
        label_column="answers",
        id_column="id",
    ),
    _row(
        "open-questions",
        ("question", "context"),
        "questions on generated passages, some of them unanswerable",
        head="question_answering",
        label_column="answers",
        id_column="id",
        unanswerable=True,
    ),
    _row(
        "choices",
        ("text",),
        "what kind of thing does a generated sentence mention?",
        head="multiple_choice",
        choice_columns=("choices",),
    ),
)
