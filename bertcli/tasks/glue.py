"""Task definitions for GLUE (Wang et al. 2018, https://gluebenchmark.com), with the metrics and files it expects."""

from __future__ import annotations

from bertcli.tasks.task import Task

SENTENCE = ("sentence",)
SENTENCE_PAIR = ("sentence1", "sentence2")
PREMISE_HYPOTHESIS = ("premise", "hypothesis")
TWO_WAY_NLI = ("entailment", "not_entailment")
THREE_WAY_NLI = ("entailment", "neutral", "contradiction")
REFERENCE_MODEL = "google-bert/bert-base-cased"
REFERENCE_SOURCE = "https://github.com/huggingface/transformers/tree/main/examples/pytorch/text-classification"


def _row(
    name: str,
    text_columns: tuple[str, ...],
    description: str,
    files: dict[str, str],
    *,
    label_names: bool = False,
    published: dict[str, float] | None = None,
    extra_tasks: tuple[str, ...] = (),
    **rest: object,
) -> Task:
    """Build the definition of a GLUE task.

    Args:
        files: test split → name of its submission file.
        label_names: whether the submission contains label names instead of IDs.
        published: scores of `REFERENCE_MODEL` on the validation split.
        extra_tasks: additional tasks whose test splits are predicted by this task's model.
    """
    fields: dict[str, object] = {"dataset": "nyu-mll/glue", "config": name, "text_columns": text_columns}
    fields["submission"] = {
        "files": files,
        "answers": "names" if label_names else "numbers",
        "extra_tasks": extra_tasks,
    }
    if published:
        fields["reference"] = {"model": REFERENCE_MODEL, "scores": published, "source": REFERENCE_SOURCE}
    return Task.model_validate({"name": f"glue/{name}", "description": description, **fields, **rest})


ROWS = (
    _row(
        "cola",
        SENTENCE,
        "is the sentence grammatical?",
        {"test": "CoLA"},
        labels=("unacceptable", "acceptable"),
        metrics=("matthews",),
        published={"matthews": 0.5653},
    ),
    _row(
        "sst2",
        SENTENCE,
        "sentiment of movie reviews",
        {"test": "SST-2"},
        labels=("negative", "positive"),
        metrics=("accuracy",),
        published={"accuracy": 0.9232},
    ),
    _row(
        "mrpc",
        SENTENCE_PAIR,
        "are two sentences paraphrases?",
        {"test": "MRPC"},
        labels=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        published={"f1": 0.8885, "accuracy": 0.8407},
    ),
    _row(
        "stsb",
        SENTENCE_PAIR,
        "how similar are two sentences (0 to 5)?",
        {"test": "STS-B"},
        problem="regression",
        metrics=("pearson", "spearman"),
        published={"pearson": 0.8864, "spearman": 0.8848},
    ),
    _row(
        "qqp",
        ("question1", "question2"),
        "are two questions duplicates?",
        {"test": "QQP"},
        labels=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        published={"f1": 0.8749, "accuracy": 0.9071},
    ),
    _row(
        "mnli",
        PREMISE_HYPOTHESIS,
        "does the hypothesis follow from the premise?",
        {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm"},
        label_names=True,
        extra_tasks=("glue/ax",),
        labels=THREE_WAY_NLI,
        metrics=("accuracy",),
        splits={
            "validation": "validation_matched",
            "test": "test_matched",
            "extra_validation": ("validation_mismatched",),
        },
        published={"accuracy": 0.8391},
    ),
    _row(
        "qnli",
        ("question", "sentence"),
        "does the sentence answer the question?",
        {"test": "QNLI"},
        label_names=True,
        labels=TWO_WAY_NLI,
        metrics=("accuracy",),
        published={"accuracy": 0.9066},
    ),
    _row(
        "rte",
        SENTENCE_PAIR,
        "does the first sentence entail the second?",
        {"test": "RTE"},
        label_names=True,
        labels=TWO_WAY_NLI,
        metrics=("accuracy",),
        published={"accuracy": 0.6570},
    ),
    _row(
        "wnli",
        SENTENCE_PAIR,
        "does the sentence with the pronoun replaced follow?",
        {"test": "WNLI"},
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        published={"accuracy": 0.5634},
    ),
    _row(
        "ax",
        PREMISE_HYPOTHESIS,
        "diagnostic inference set, predicted by the MNLI model; its labels are hidden",
        {"test": "AX"},
        label_names=True,
        labels=THREE_WAY_NLI,
        metrics=("matthews",),
        splits={"train": None, "validation": None, "test": "test"},
    ),
)
