"""Bundled metrics with the `evaluate` interface, against their definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import sklearn.metrics
from pyarrow import parquet

from bertcli.data.sources import load_split, load_training_rows
from bertcli.errors import DataError
from bertcli.heads.labels import resolve_labels
from bertcli.heads.text_classification import TextClassification
from bertcli.inference.scoring import positive_label_id
from bertcli.metrics import METRICS, check_binary_f1, compute_metric, compute_metrics, load_metric, score_names
from bertcli.reports.analysis import per_label_scores
from bertcli.tasks.task import Task

RANDOM = np.random.default_rng(0)


def test_accuracy_f1_and_matthews_match_their_definitions() -> None:
    predictions, references = RANDOM.integers(0, 2, 101), RANDOM.integers(0, 2, 101)
    tp, tn = ((predictions == k) & (references == k) for k in (1, 0))
    tp, tn = float(tp.sum()), float(tn.sum())
    fp, fn = (
        float(((predictions == 1) & (references == 0)).sum()),
        float(((predictions == 0) & (references == 1)).sum()),
    )
    scores = compute_metrics(("accuracy", "f1", "matthews"), "single_label", predictions, references)
    assert scores["accuracy"] == pytest.approx((tp + tn) / 101)
    assert scores["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    product = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores["matthews"] == pytest.approx((tp * tn - fp * fn) / product)


def test_binary_f1_uses_the_positive_label() -> None:
    predictions, references = np.array([0, 0, 1]), np.array([0, 1, 1])
    f1 = [compute_metrics(["f1"], "single_label", 1 - predictions, 1 - references, label)["f1"] for label in (0, 1)]
    assert f1 == [compute_metrics(["f1"], "single_label", predictions, references, label)["f1"] for label in (1, 0)]
    assert f1[0] == pytest.approx(2 / 3)
    with pytest.raises(DataError, match=r"found metric f1 with 3 labels, expected two\. Set task\.metrics to f1_macro"):
        check_binary_f1(Task(dataset="x", text_columns=("a",), labels=("a", "b", "c"), metrics=("f1",)))


def test_macro_and_micro_f1_of_multi_label_match_their_definitions() -> None:
    predictions, references = RANDOM.integers(0, 2, (50, 4)), RANDOM.integers(0, 2, (50, 4))
    hits, sums = (predictions * references).sum(0), predictions.sum(0) + references.sum(0)
    scores = compute_metrics(("f1_macro", "f1_micro", "exact_match"), "multi_label", predictions, references)
    assert scores["f1_macro"] == pytest.approx((2 * hits / sums).mean())
    assert scores["f1_micro"] == pytest.approx(2 * hits.sum() / sums.sum())
    assert scores["exact_match"] == pytest.approx((predictions == references).all(1).mean())


def test_correlations_match_their_definitions() -> None:
    predictions = RANDOM.normal(size=60)
    references = predictions + RANDOM.normal(size=60)
    scores = compute_metrics(("pearson", "spearman"), "regression", predictions, references)
    assert scores["pearson"] == pytest.approx(np.corrcoef(predictions, references)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (predictions, references)]
    assert scores["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_correlation_of_constant_predictions_is_zero() -> None:
    scores = compute_metrics(("pearson", "spearman"), "regression", np.ones(9), np.arange(9.0))
    assert scores == {"pearson": 0.0, "spearman": 0.0}


def test_metric_accumulates_batches() -> None:
    metric = load_metric("accuracy", "single_label")
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add_batch(predictions=[1], references=[1])
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}


def test_unknown_or_inapplicable_metric_error_lists_alternatives() -> None:
    with pytest.raises(DataError, match="Did you mean accuracy"):
        load_metric("acuracy", "single_label")
    with pytest.raises(DataError, match="pearson, spearman"):
        load_metric("accuracy", "regression")


ROWS: dict[str, tuple[Any, Any]] = {  # predictions and references of each kind
    "single_label": (RANDOM.integers(0, 2, 50), RANDOM.integers(0, 2, 50)),
    "multiple_choice": (RANDOM.integers(0, 4, 50), RANDOM.integers(0, 4, 50)),
    "multi_label": (RANDOM.integers(0, 2, (50, 3)), RANDOM.integers(0, 2, (50, 3))),
    "regression": (RANDOM.normal(size=50), RANDOM.normal(size=50)),
    "token_classification": ([["B-PER", "O", "O"], ["O", "B-LOC"]], [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]),
    "question_answering": (
        [{"text": text, "best_text": "dog", "null_odds": odds} for text, odds in (("a dog", -1.0), ("", 0.5))],
        [["the dog", "dog"], ["cat"]],
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_those_of_the_evaluate_metric(name: str) -> None:
    for kind in METRICS[name][1].split():
        predictions, references = ROWS[kind]
        expected = load_metric(name, kind).compute(predictions=predictions, references=references)
        for convert in (list, lambda values: values):
            assert compute_metric(name, kind, convert(predictions), convert(references)) == expected


def test_every_metric_is_maximal_on_gold_predictions() -> None:
    gold = {
        "single_label": np.array([0, 1, 1, 0]),
        "multiple_choice": np.array([0, 3, 2]),
        "multi_label": np.array([[0, 1], [1, 1.0]]),
        "regression": np.arange(4.0),
        "token_classification": [["B-PER", "I-PER", "O"], ["O", "B-LOC"]],
        "question_answering": [["a dog", "the dog"], ["cat"]],
    }
    spans = [{"text": golds[0], "best_text": golds[0], "null_odds": -1.0} for golds in gold["question_answering"]]
    predictions = gold | {"question_answering": spans}
    for name, (_, kinds) in METRICS.items():
        for kind in kinds.split():
            scores = compute_metrics((name,), kind, predictions[kind], gold[kind])
            for score in score_names([name]):
                assert scores[score] == pytest.approx(100.0 if kind == "question_answering" else 1.0), (name, score)


LABEL_VALUES: dict[str, list[Any]] = {
    "two texts": ["ham", "spam"],
    "text in capitals": ["No", "Yes"],
    "three texts": ["b", "a", "c d"],
    "booleans": [False, True],
    "0 and 1": [0, 1],
    "1 and 2": [1, 2],
    "-1 and 1": [-1, 1],
    "ratings": [1, 2, 10],
    "floats": [0.0, 1.0],
    "halves": [0.5, 1.0, 10.5],
}


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        pandas.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("kind", LABEL_VALUES)
def test_scores_of_labels_read_from_files_are_those_of_scikit_learn(tmp_path: Path, kind: str, suffix: str) -> None:
    values = LABEL_VALUES[kind]
    gold, predicted = ([values[index] for index in RANDOM.integers(0, len(values), 60)] for _ in range(2))
    for split, labels in (("gold", gold), ("predicted", predicted)):
        write_table(tmp_path / f"{split}.{suffix}", [{"text": f"t {row}", "label": x} for row, x in enumerate(labels)])
    listed = ("-1", "1") if kind == "-1 and 1" else ()  # otherwise -1 is a missing label
    files = {"train": str(tmp_path / f"gold.{suffix}"), "test": str(tmp_path / f"predicted.{suffix}")}
    task = Task.model_validate({"files": files, "text_columns": ("text",), "labels": listed})
    rows = load_training_rows(task)
    task = task.model_copy(update={"labels": resolve_labels(task, rows)})
    head = TextClassification("single_label", task.labels)
    ids, predicted_ids = head.references(task, rows), head.references(task, load_split(task, "test"))
    assert ids is not None
    assert predicted_ids is not None

    names = ["accuracy", "f1_macro", "f1_micro", "matthews", *(["f1"] if len(values) == 2 else [])]
    scores = compute_metrics(names, "single_label", predicted_ids, ids, positive_label_id(task, head))
    sides = [*map(str, gold)], [*map(str, predicted)]
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(*sides))
    assert scores["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(*sides))
    for average in ("macro", "micro"):
        assert scores[f"f1_{average}"] == pytest.approx(sklearn.metrics.f1_score(*sides, average=average))
    if len(values) == 2:  # the second label by value is the positive one
        assert scores["f1"] == pytest.approx(sklearn.metrics.f1_score(*sides, pos_label=str(max(values))))

    table = per_label_scores(*([{task.labels[index]} for index in side] for side in (ids, predicted_ids)))
    expected = sklearn.metrics.precision_recall_fscore_support(*sides, labels=[str(x) for x in sorted(values)])
    by_label = {score.label: score for score in table}
    for label, *numbers in zip(task.labels, *expected, strict=True):
        score = by_label[label]
        assert [score.precision, score.recall, score.f1, score.support] == pytest.approx(numbers)
