"""The metrics with the `evaluate` interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bertcli.errors import DataError
from bertcli.metrics.evaluate_metric import load_metric
from bertcli.metrics.scores import METRICS

from ..conftest import score_predictions

RANDOM = np.random.default_rng(0)


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


def probabilities_of(predictions: np.ndarray, kind: str) -> np.ndarray:
    """Return random probabilities of the shape that a model gives for these predictions."""
    if kind == "multi_label":
        return RANDOM.random(predictions.shape)
    return RANDOM.dirichlet(np.ones(predictions.max() + 1), len(predictions))


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_those_of_the_evaluate_metric(name: str) -> None:
    for kind in METRICS[name].answer_kinds:
        predictions, references = ROWS[kind]
        probabilities = None
        if METRICS[name].needs == "probabilities":
            probabilities = probabilities_of(predictions, kind)
        given = predictions if probabilities is None else probabilities
        expected = load_metric(name, kind).compute(predictions=given, references=references)
        for convert in (list, lambda values: values):
            sides = convert(predictions), convert(references)
            assert score_predictions([name], kind, *sides, probabilities=probabilities) == expected
