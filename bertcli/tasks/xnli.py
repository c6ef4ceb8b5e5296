"""Task definitions for XNLI (Conneau et al. 2018, https://arxiv.org/abs/1809.05053): inference in 15 languages."""

from __future__ import annotations

from bertcli.tasks.task import Task

LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")


def _row(language: str) -> Task:
    return Task(
        name=f"xnli/{language}",
        dataset="facebook/xnli",
        config=language,
        text_columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        description=f"does a sentence entail another? language: {language}; training split translated by machine",
    )


ROWS = tuple(map(_row, LANGUAGES))
