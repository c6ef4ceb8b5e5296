"""Task definitions for SQuAD: questions answered by a span of a passage (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

from bertcli.tasks.task import Reference, Task


def _row(name: str, dataset: str, description: str, reference: Reference, **rest: object) -> Task:
    fields = {
        "name": f"squad/{name}",
        "head": "question_answering",
        "dataset": dataset,
        "splits": {"test": None},
        "text_columns": ("question", "context"),
        "label_column": "answers",
        "id_column": "id",
        "description": description,
        "reference": reference,
    }
    return Task.model_validate({**fields, **rest})


ROWS = (
    _row(
        "v1",
        "rajpurkar/squad",
        "questions on Wikipedia paragraphs",
        Reference(model="BERT base", scores={"exact_match": 80.8, "f1": 88.5}, source="Devlin et al. 2019, table 2"),
        metrics=("squad",),
    ),
    _row(
        "v2",
        "rajpurkar/squad_v2",
        "questions on Wikipedia paragraphs, some of them unanswerable",
        Reference(
            model="BERT large uncased",
            scores={"exact_match": 78.63, "f1": 81.58},
            source="https://huggingface.co/madlag/bert-large-uncased-squadv2",
        ),
        metrics=("squad_v2",),
        unanswerable=True,
    ),
)
