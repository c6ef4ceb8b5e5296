"""Bundled metrics against their definitions and scikit-learn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
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
from bertcli.metrics.scores import (
    METRICS,
    averaged_scores,
    best_value,
    check_metric,
    check_metrics,
    check_references,
    is_better_lower,
    score_names,
    selection_score,
    task_score,
)
from bertcli.reports.analysis import per_label_scores
from bertcli.tasks.task import Task

from ..conftest import score_predictions

RANDOM = np.random.default_rng(0)


def test_accuracy_f1_and_matthews_match_their_definitions() -> None:
    predictions, references = RANDOM.integers(0, 2, 101), RANDOM.integers(0, 2, 101)
    tp, tn = ((predictions == k) & (references == k) for k in (1, 0))
    tp, tn = float(tp.sum()), float(tn.sum())
    fp, fn = (
        float(((predictions == 1) & (references == 0)).sum()),
        float(((predictions == 0) & (references == 1)).sum()),
    )
    scores = score_predictions(("accuracy", "f1", "matthews"), "single_label", predictions, references)
    assert scores["accuracy"] == pytest.approx((tp + tn) / 101)
    assert scores["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    product = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores["matthews"] == pytest.approx((tp * tn - fp * fn) / product)


def test_binary_f1_uses_the_positive_label() -> None:
    predictions, references = np.array([0, 0, 1]), np.array([0, 1, 1])
    f1 = [score_predictions(["f1"], "single_label", 1 - predictions, 1 - references, label)["f1"] for label in (0, 1)]
    assert f1 == [score_predictions(["f1"], "single_label", predictions, references, label)["f1"] for label in (1, 0)]
    assert f1[0] == pytest.approx(2 / 3)
    with pytest.raises(DataError, match=r"found metric f1 with 3 labels, expected two\. Set task\.metrics to f1_macro"):
        check_metrics(Task(dataset="x", text_columns=("a",), labels=("a", "b", "c"), metrics=("f1",)))


def test_macro_and_micro_f1_of_multi_label_match_their_definitions() -> None:
    predictions, references = RANDOM.integers(0, 2, (50, 4)), RANDOM.integers(0, 2, (50, 4))
    hits, sums = (predictions * references).sum(0), predictions.sum(0) + references.sum(0)
    scores = score_predictions(("f1_macro", "f1_micro", "exact_match"), "multi_label", predictions, references)
    assert scores["f1_macro"] == pytest.approx((2 * hits / sums).mean())
    assert scores["f1_micro"] == pytest.approx(2 * hits.sum() / sums.sum())
    assert scores["exact_match"] == pytest.approx((predictions == references).all(1).mean())


def test_accuracy_is_that_of_scikit_learn() -> None:
    for num_labels in (2, 5):
        predictions, references = RANDOM.integers(0, num_labels, (2, 101))
        expected = sklearn.metrics.accuracy_score(references, predictions)
        for kind in ("single_label", "multiple_choice"):
            assert score_predictions(["accuracy"], kind, predictions, references)["accuracy"] == expected
    predictions, references = RANDOM.integers(0, 2, (2, 50, 2)).astype(np.float32)
    expected = sklearn.metrics.accuracy_score(references, predictions)
    assert score_predictions(["exact_match"], "multi_label", predictions, references)["exact_match"] == expected


def test_scores_of_labels_do_not_import_scikit_learn() -> None:
    """The import takes half a second, of a short command on a CPU one twentieth."""
    code = (
        "import sys\nfrom bertcli.metrics.answers import collect_answers\n"
        "from bertcli.metrics.scores import METRICS, compute_scores\n"
        "names = [name for name, metric in METRICS.items() if 'single_label' in metric.answer_kinds]\n"
        "probabilities = [[0.8, 0.2], [0.3, 0.7]]\n"
        "compute_scores(collect_answers(names, 'single_label', [1, 0], [1, 0], probabilities=probabilities))\n"
        "assert not {'sklearn', 'scipy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_correlations_match_their_definitions() -> None:
    predictions = RANDOM.normal(size=60)
    references = predictions + RANDOM.normal(size=60)
    scores = score_predictions(("pearson", "spearman"), "regression", predictions, references)
    assert scores["pearson"] == pytest.approx(np.corrcoef(predictions, references)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (predictions, references)]
    assert scores["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_correlation_of_constant_predictions_is_zero() -> None:
    scores = score_predictions(("pearson", "spearman"), "regression", np.ones(9), np.arange(9.0))
    assert scores == {"pearson": 0.0, "spearman": 0.0}


def test_unknown_or_inapplicable_metric_error_lists_alternatives() -> None:
    with pytest.raises(DataError, match="Did you mean accuracy"):
        check_metric("acuracy", "single_label")
    with pytest.raises(DataError, match="pearson, spearman"):
        check_metric("accuracy", "regression")


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
    probabilities = {
        "single_label": np.eye(2)[gold["single_label"]],
        "multiple_choice": np.eye(4)[gold["multiple_choice"]],
        "multi_label": np.asarray(gold["multi_label"], dtype=np.float64),
    }
    for name, metric in METRICS.items():
        for kind in metric.answer_kinds:
            scores = score_predictions(
                (name,), kind, predictions[kind], gold[kind], probabilities=probabilities.get(kind)
            )
            best = 0.0 if metric.lower_is_better else 100.0 if kind == "question_answering" else 1.0
            for score in score_names([name]):
                assert scores[score] == pytest.approx(best), (name, score)


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
    scores = score_predictions(names, "single_label", predicted_ids, ids, head.positive_label_id(task))
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


def one_vs_rest(function: Callable[..., Any], gold: np.ndarray, probabilities: np.ndarray) -> float:
    return float(np.mean([function(gold == label, probabilities[:, label]) for label in np.unique(gold)]))


@pytest.mark.parametrize("pos_label", [0, 1])
def test_metrics_of_the_positive_label_match_scikit_learn(pos_label: int) -> None:
    gold, predictions = RANDOM.integers(0, 2, 101), RANDOM.integers(0, 2, 101)
    probabilities = RANDOM.dirichlet((1, 1), 101).round(1)  # with ties
    names = ["f1", "f0.5", "f2", "precision", "recall", "roc_auc", "average_precision"]
    scores = score_predictions(names, "single_label", predictions, gold, pos_label, probabilities=probabilities)
    options = {"pos_label": pos_label}
    for name, beta in (("f1", 1), ("f0.5", 0.5), ("f2", 2)):
        assert scores[name] == pytest.approx(
            sklearn.metrics.fbeta_score(gold, predictions, beta=beta, **options), rel=1e-12
        )
    assert scores["precision"] == pytest.approx(
        sklearn.metrics.precision_score(gold, predictions, **options), rel=1e-12
    )
    assert scores["recall"] == pytest.approx(sklearn.metrics.recall_score(gold, predictions, **options), rel=1e-12)
    positive = probabilities[:, pos_label]
    assert scores["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(gold == pos_label, positive), rel=1e-12)
    assert scores["average_precision"] == pytest.approx(
        sklearn.metrics.average_precision_score(gold, positive, **options), rel=1e-12
    )


def test_metrics_of_several_labels_match_scikit_learn() -> None:
    gold, predictions = RANDOM.integers(0, 4, 103), RANDOM.integers(0, 4, 103)
    probabilities = RANDOM.dirichlet(np.ones(4), 103)
    names = [name for name, metric in METRICS.items() if metric.answer_kinds[0] == "single_label"]
    names = [name for name in names if not METRICS[name].is_binary]
    scores = score_predictions(names, "single_label", predictions, gold, probabilities=probabilities)
    for average in ("macro", "micro", "weighted"):
        for name, beta in (("f1", 1), ("f0.5", 0.5), ("f2", 2)):
            expected = sklearn.metrics.fbeta_score(gold, predictions, beta=beta, average=average)
            assert scores[f"{name}_{average}"] == pytest.approx(expected, rel=1e-12)
        for name in ("precision", "recall"):
            expected = getattr(sklearn.metrics, f"{name}_score")(gold, predictions, average=average)
            assert scores[f"{name}_{average}"] == pytest.approx(expected, rel=1e-12)
    assert scores["roc_auc_macro"] == pytest.approx(
        sklearn.metrics.roc_auc_score(gold, probabilities, multi_class="ovr", average="macro")
    )
    expected = sklearn.metrics.average_precision_score(np.eye(4)[gold], probabilities, average="macro")
    assert scores["average_precision_macro"] == pytest.approx(expected)
    assert scores["log_loss"] == pytest.approx(sklearn.metrics.log_loss(gold, probabilities), rel=1e-12)
    assert scores["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(gold, probabilities))


def test_probability_metrics_of_two_labels_match_scikit_learn() -> None:
    gold, probabilities = RANDOM.integers(0, 2, 50), RANDOM.dirichlet((1, 1), 50)
    names = ["log_loss", "brier", "roc_auc_macro"]
    scores = score_predictions(names, "single_label", gold, gold, probabilities=probabilities)
    assert scores["log_loss"] == pytest.approx(sklearn.metrics.log_loss(gold, probabilities[:, 1]))
    assert scores["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(gold, probabilities[:, 1]))
    assert scores["roc_auc_macro"] == pytest.approx(sklearn.metrics.roc_auc_score(gold, probabilities[:, 1]))


def test_probability_metrics_of_label_sets_match_scikit_learn() -> None:
    gold, probabilities = RANDOM.integers(0, 2, (60, 3)), RANDOM.random((60, 3))
    names = [name for name, metric in METRICS.items() if metric.needs == "probabilities"]
    names = [name for name in names if "multi_label" in METRICS[name].answer_kinds]
    scores = score_predictions(names, "multi_label", gold, gold, probabilities=probabilities)
    for name in ("roc_auc", "average_precision"):
        for average in ("macro", "micro"):
            expected = getattr(sklearn.metrics, f"{name}_score")(gold, probabilities, average=average)
            assert scores[f"{name}_{average}"] == pytest.approx(expected)
    pairs = list(zip(gold.T, probabilities.T, strict=True))
    assert scores["log_loss"] == pytest.approx(np.mean([sklearn.metrics.log_loss(*pair) for pair in pairs]))
    assert scores["brier"] == pytest.approx(np.mean([sklearn.metrics.brier_score_loss(*pair) for pair in pairs]))


def test_regression_errors_match_scikit_learn() -> None:
    gold = RANDOM.normal(size=61)
    for predictions in (gold + RANDOM.normal(size=61), np.full(61, 0.5)):
        scores = score_predictions(("mse", "rmse", "mae", "r2"), "regression", predictions, gold)
        expected = {
            "mse": sklearn.metrics.mean_squared_error(gold, predictions),
            "rmse": sklearn.metrics.root_mean_squared_error(gold, predictions),
            "mae": sklearn.metrics.mean_absolute_error(gold, predictions),
            "r2": sklearn.metrics.r2_score(gold, predictions),
        }
        assert scores == pytest.approx(expected, rel=1e-12)


def test_mean_reciprocal_rank_matches_its_definition_and_ties_rank_last() -> None:
    gold, probabilities = RANDOM.integers(0, 5, 57), RANDOM.dirichlet(np.ones(5), 57)
    ranks = (-probabilities).argsort(1).argsort(1)[np.arange(57), gold] + 1
    names = ("mrr", "log_loss", "brier")
    scores = score_predictions(names, "multiple_choice", gold, gold, probabilities=probabilities)
    assert scores["mrr"] == pytest.approx((1 / ranks).mean())
    assert scores["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(gold, probabilities, labels=range(5)), rel=1e-12
    )
    constant = np.full((57, 5), 0.2)
    assert score_predictions(["mrr"], "multiple_choice", gold, gold, probabilities=constant)["mrr"] == pytest.approx(
        1 / 5
    )


def test_labels_that_no_row_has_are_left_out_of_macro_ranking_scores() -> None:
    gold, probabilities = RANDOM.integers(0, 3, 90), RANDOM.dirichlet(np.ones(4), 90)  # no row has label 3
    names = ["roc_auc_macro", "average_precision_macro", "log_loss", "brier"]
    scores = score_predictions(names, "single_label", gold, gold, probabilities=probabilities)
    assert scores["roc_auc_macro"] == pytest.approx(one_vs_rest(sklearn.metrics.roc_auc_score, gold, probabilities))
    expected = one_vs_rest(sklearn.metrics.average_precision_score, gold, probabilities)
    assert scores["average_precision_macro"] == pytest.approx(expected)
    assert scores["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(gold, probabilities, labels=range(4)), rel=1e-12
    )
    assert scores["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(gold, probabilities, labels=range(4)))
    label_sets = np.stack((gold == 0, np.ones(90), np.zeros(90)), axis=1)  # the last two have no ROC-AUC
    scores = score_predictions(names[:2], "multi_label", label_sets, label_sets, probabilities=probabilities[:, :3])
    assert scores["roc_auc_macro"] == pytest.approx(
        sklearn.metrics.roc_auc_score(gold == 0, probabilities[:, 0]), rel=1e-12
    )
    first = sklearn.metrics.average_precision_score(gold == 0, probabilities[:, 0])
    assert scores["average_precision_macro"] == pytest.approx((first + 1) / 2)


def test_constant_predictions_have_defined_scores() -> None:
    gold, constant = np.array([0, 1, 1, 0, 0]), np.zeros(5, dtype=int)
    probabilities = np.full((5, 2), 0.5)
    names = ["f1", "f2", "precision", "recall", "roc_auc", "average_precision", "log_loss", "brier"]
    scores = score_predictions(names, "single_label", constant, gold, probabilities=probabilities)
    assert scores == pytest.approx(
        {"f1": 0, "f2": 0, "precision": 0, "recall": 0}
        | {"roc_auc": 0.5, "average_precision": 0.4, "log_loss": np.log(2), "brier": 0.25}
    )
    certain = np.eye(2)[1 - gold]  # log loss stays finite
    assert np.isfinite(score_predictions(["log_loss"], "single_label", gold, gold, probabilities=certain)["log_loss"])


@pytest.mark.parametrize(
    ("name", "kind", "gold", "lack"),
    [
        ("roc_auc", "single_label", [0, 0], "rows with a label and rows without it"),
        ("roc_auc", "single_label", [1, 1], "rows with a label and rows without it"),
        ("roc_auc_macro", "single_label", [1, 1], "rows with a label and rows without it"),
        ("roc_auc_macro", "multi_label", [[0, 1], [0, 1]], "rows with a label and rows without it"),
        ("roc_auc_micro", "multi_label", [[1, 1], [1, 1]], "rows with a label and rows without it"),
        ("average_precision", "single_label", [0, 0], "rows with the label"),
        ("average_precision_macro", "multi_label", [[0, 0], [0, 0]], "rows with the label"),
        ("r2", "regression", [1.0], "at least two rows, found 1"),
        ("pearson", "regression", [1.0], "at least two rows, found 1"),
        ("spearman", "regression", [1.5, 1.5, 1.5], "rows with different numbers"),
    ],
)
def test_undefined_score_is_refused_with_what_it_needs(name: str, kind: str, gold: Any, lack: str) -> None:
    array = np.asarray(gold)
    task = Task.model_validate({"dataset": "x", "text_columns": ("a",), "problem": kind, "metrics": (name,)})
    with pytest.raises(DataError, match=f"the metric {name} needs {lack} in split 'test'; use other rows, or leave"):
        check_references(task, "test", array)
    probabilities = np.full((2, 2), 0.5) if METRICS[name].needs == "probabilities" else None
    with pytest.raises(DataError, match=f"the metric {name} needs {lack}"):
        score_predictions([name], kind, array, array, probabilities=probabilities)


@pytest.mark.parametrize("name", ["precision", "f0.5", "roc_auc", "average_precision"])
def test_metric_of_the_second_label_is_rejected_for_three_labels_and_names_its_averages(name: str) -> None:
    task = Task(dataset="x", text_columns=("a",), labels=("a", "b", "c"), metrics=(name,))
    with pytest.raises(DataError, match=rf"found metric {name} with 3 labels.* Set task\.metrics to {name}_macro"):
        check_metrics(task)


def test_direction_decides_which_score_is_best() -> None:
    names = ["loss", "brier", "log_loss", "mse", "rmse", "mae", "perplexity", "generator_loss", "x/sst2/mae"]
    assert all(is_better_lower(name) for name in names)
    assert not any(is_better_lower(name) for name in ("f1", "r2", "mrr", "accuracy", "average", "exact", "x/f1"))
    assert best_value("mae", [3.0, 1.0, 2.0]) == 1.0
    assert best_value("f1", [3.0, 1.0, 2.0]) == 3.0
    assert selection_score("mae", 1.0) > selection_score("mae", 2.0)
    assert selection_score("f1", 1.0) < selection_score("f1", 2.0)


def test_scores_for_which_lower_is_better_are_left_out_of_averages_over_tasks() -> None:
    def task(*metrics: str) -> Task:
        return Task.model_validate(
            {"dataset": "x", "text_columns": ("a",), "problem": "regression", "metrics": metrics}
        )

    assert averaged_scores(task("pearson", "mae", "spearman")) == ["pearson", "spearman"]
    assert task_score(task("pearson", "mae", "spearman"), {"pearson": 0.4, "mae": 9.0, "spearman": 0.6}) == 0.5
    assert averaged_scores(task("mae")) == averaged_scores(task("pearson"), "loss") == []
