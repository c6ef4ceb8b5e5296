"""GLUE rows (Wang et al. 2018, https://gluebenchmark.com), with the metrics of the leaderboard."""

from __future__ import annotations

from bertcli.tasks.task import Task

ONE = ("sentence",)
PAIR = ("sentence1", "sentence2")


def _row(name: str, text_columns: tuple[str, ...], description: str, **rest: object) -> Task:
    fields = {"dataset": "nyu-mll/glue", "config": name, "text_columns": text_columns, "description": description}
    return Task.model_validate({"name": f"glue/{name}", **fields, **rest})


ROWS = (
    _row("cola", ONE, "is the sentence grammatical?", labels=("unacceptable", "acceptable"), metrics=("matthews",)),
    _row("sst2", ONE, "sentiment of film reviews", labels=("negative", "positive"), metrics=("accuracy",)),
    _row(
        "mrpc",
        PAIR,
        "do two sentences say the same?",
        labels=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
    ),
    _row(
        "rte",
        PAIR,
        "does the first sentence entail the second?",
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
    ),
    _row("stsb", PAIR, "how alike are two sentences (0 to 5)?", problem="regression", metrics=("pearson", "spearman")),
)
