"""Task definitions for named entity recognition."""

from __future__ import annotations

from bertcli.tasks.task import Reference, Task

PANX_LANGUAGES = (
    *(
        "af",
        "ar",
        "bg",
        "bn",
        "de",
        "el",
        "en",
        "es",
        "et",
        "eu",
        "fa",
        "fi",
        "fr",
        "he",
        "hi",
        "hu",
        "id",
        "it",
        "ja",
        "jv",
    ),
    *(
        "ka",
        "kk",
        "ko",
        "ml",
        "mr",
        "ms",
        "my",
        "nl",
        "pt",
        "ru",
        "sw",
        "ta",
        "te",
        "th",
        "tl",
        "tr",
        "ur",
        "vi",
        "yo",
        "zh",
    ),
)


def _panx_row(language: str) -> Task:
    """Build the definition of PAN-X in a language, as in XTREME."""
    return Task(
        name=f"panx/{language}",
        head="token_classification",
        dataset="google/xtreme",
        config=f"PAN-X.{language}",
        text_columns=("tokens",),
        label_column="ner_tags",
        labels=("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"),
        metrics=("seqeval",),
        description=f"persons, organizations and locations in Wikipedia in the language {language} (Pan et al. 2017)",
    )


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
    *map(_panx_row, PANX_LANGUAGES),
)
