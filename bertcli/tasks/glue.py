"""GLUE rows (Wang et al. 2018, https://gluebenchmark.com), with the metrics and files of the leaderboard."""

from __future__ import annotations

from bertcli.tasks.task import Task

ONE = ("sentence",)
PAIR = ("sentence1", "sentence2")
PREMISE = ("premise", "hypothesis")
YES_NO = ("entailment", "not_entailment")
THREE_WAY = ("entailment", "neutral", "contradiction")
REFERENCE_MODEL = "google-bert/bert-base-cased"
REFERENCE_SOURCE = "https://github.com/huggingface/transformers/tree/main/examples/pytorch/text-classification"


def _row(
    name: str,
    text_columns: tuple[str, ...],
    description: str,
    files: dict[str, str],
    *,
    names: bool = False,
    published: dict[str, float] | None = None,
    also: tuple[str, ...] = (),
    **rest: object,
) -> Task:
    """A row of GLUE.

    Args:
        files: test split → file of the leaderboard.
        names: whether the leaderboard wants label names instead of numbers.
        published: scores of `REFERENCE_MODEL` on the validation split.
        also: rows whose test split this task's model answers.
    """
    fields: dict[str, object] = {"dataset": "nyu-mll/glue", "config": name, "text_columns": text_columns}
    fields["submission"] = {"files": files, "answers": "names" if names else "numbers", "also": also}
    if published:
        fields["reference"] = {"model": REFERENCE_MODEL, "scores": published, "source": REFERENCE_SOURCE}
    return Task.model_validate({"name": f"glue/{name}", "description": description, **fields, **rest})


ROWS = (
    _row(
        "cola",
        ONE,
        "is the sentence grammatical?",
        {"test": "CoLA"},
        labels=("unacceptable", "acceptable"),
        metrics=("matthews",),
        published={"matthews": 0.5653},
    ),
    _row(
        "sst2",
        ONE,
        "sentiment of film reviews",
        {"test": "SST-2"},
        labels=("negative", "positive"),
        metrics=("accuracy",),
        published={"accuracy": 0.9232},
    ),
    _row(
        "mrpc",
        PAIR,
        "do two sentences say the same?",
        {"test": "MRPC"},
        labels=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        published={"f1": 0.8885, "accuracy": 0.8407},
    ),
    _row(
        "stsb",
        PAIR,
        "how alike are two sentences (0 to 5)?",
        {"test": "STS-B"},
        problem="regression",
        metrics=("pearson", "spearman"),
        published={"pearson": 0.8864, "spearman": 0.8848},
    ),
    _row(
        "qqp",
        ("question1", "question2"),
        "do two questions ask the same?",
        {"test": "QQP"},
        labels=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        published={"f1": 0.8749, "accuracy": 0.9071},
    ),
    _row(
        "mnli",
        PREMISE,
        "does the hypothesis follow from the premise?",
        {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm"},
        names=True,
        also=("glue/ax",),
        labels=THREE_WAY,
        metrics=("accuracy",),
        splits={
            "validation": "validation_matched",
            "test": "test_matched",
            "more_validation": ("validation_mismatched",),
        },
        published={"accuracy": 0.8391},
    ),
    _row(
        "qnli",
        ("question", "sentence"),
        "does the sentence answer the question?",
        {"test": "QNLI"},
        names=True,
        labels=YES_NO,
        metrics=("accuracy",),
        published={"accuracy": 0.9066},
    ),
    _row(
        "rte",
        PAIR,
        "does the first sentence entail the second?",
        {"test": "RTE"},
        names=True,
        labels=YES_NO,
        metrics=("accuracy",),
        published={"accuracy": 0.6570},
    ),
    _row(
        "wnli",
        PAIR,
        "does the sentence with the pronoun replaced follow?",
        {"test": "WNLI"},
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        published={"accuracy": 0.5634},
    ),
    _row(
        "ax",
        PREMISE,
        "diagnostic of inference, answered by MNLI's model; its labels are hidden",
        {"test": "AX"},
        names=True,
        labels=THREE_WAY,
        metrics=("matthews",),
        splits={"train": None, "validation": None, "test": "test"},
    ),
)
