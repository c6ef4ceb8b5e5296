"""Task definitions for named entity recognition."""

from __future__ import annotations

from bertcli.tasks.task import Reference, Task

ROWS = (
    Task(
        name="ner/conll2003",
        head="token_classification",
        dataset="eriktks/conll2003",
        config="conll2003",
        text_columns=("tokens",),
        label_column="ner_tags",
        labels=("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"),
        metrics=("seqeval",),
        description="persons, organizations, locations and other entities in news (Tjong Kim Sang and De Meulder 2003)",
        reference=Reference(
            model="google-bert/bert-base-cased",
            scores={"f1": 0.924},
            split="test",
            source="Devlin et al. 2019, table 7",
        ),
    ),
)
