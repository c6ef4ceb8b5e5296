"""Scores of weighted rows against the bundled metrics on rows that are repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bertcli.metrics.answers import collect_answers
from bertcli.metrics.scores import METRICS, compute_metrics, score_names
from bertcli.metrics.weighted_scores import WEIGHTED_SCORES, num_columns, weighted_scores

N = 23
TAGS = ("O", "B-PER", "I-PER", "B-LOC")
WORDS = ("a red dog", "the dog", "blue", "")
TUNED = {"best_exact", "best_f1"}


def random_answers(kind: str, random: np.random.Generator) -> dict[str, Any]:
    """Random predictions, references, and what else a metric of this kind needs."""
    if kind in ("single_label", "multiple_choice"):
        predicted, gold = random.integers(0, 3, N), random.integers(0, 3, N)
        gold[:2], gold[-2:] = (0, 1), (1, 2)
        return {"predictions": predicted, "references": gold, "probabilities": random.dirichlet(np.ones(3), N).round(1)}
    if kind == "multi_label":
        predicted, gold = random.integers(0, 2, (2, N, 3)).astype(np.float32)
        return {"predictions": predicted, "references": gold, "probabilities": random.random((N, 3)).round(1)}
    if kind == "regression":
        return {"predictions": random.normal(size=N).round(1), "references": random.normal(size=N).round(1)}
    if kind == "token_classification":
        rows = [random.choice(TAGS, (2, size)).tolist() for size in random.integers(1, 9, N)]
        predicted, gold = zip(*rows, strict=True)
        gold[0][0] = None
        return {"predictions": [*predicted], "references": [*gold], "labels": TAGS}
    spans = [{"text": text, "best_text": text or "a", "null_odds": 0.5} for text in random.choice(WORDS, N)]
    golds = [[*random.choice(WORDS[:3], size)] for size in random.integers(0, 3, N)]
    return {"predictions": spans, "references": golds}


def drawn(values: Any, rows: np.ndarray) -> Any:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, row in METRICS.items() for kind in row.answer_kinds])
def test_scores_of_samples_are_those_of_the_metric_on_the_drawn_rows(name: str, kind: str) -> None:
    random = np.random.default_rng(0)
    given = random_answers(kind, random)
    binary = kind == "single_label" and "pos_label" in METRICS[name].options
    if binary:
        given = {key: values % 2 if values.ndim == 1 else values[:, :2] for key, values in given.items()}
    if name == "log_loss" and kind != "multi_label":  # scikit-learn warns unless probabilities sum to one
        given["probabilities"] = random.dirichlet(np.ones(3), N)
    options = {"pos_label": 0} if binary else {}
    answers = collect_answers([name], kind, **given, **options)
    samples = [np.arange(N), *random.integers(0, N, (6, N))]
    functions = weighted_scores(answers)
    assert {*score_names([name])} - TUNED <= {*functions}
    weights = np.stack([np.bincount(rows, minlength=N) for rows in samples]).astype(float)
    for score, function in functions.items():
        values = function(answers, weights)
        for rows, value in zip(samples, values, strict=True):
            sample = {key: drawn(values, rows) if key != "labels" else values for key, values in given.items()}
            expected = compute_metrics([name], kind, **sample, **options)
            assert value == pytest.approx(expected[score], abs=1e-9), score


def test_every_metric_has_weighted_scores() -> None:
    assert WEIGHTED_SCORES.keys() == METRICS.keys()


def test_scores_that_a_sample_leaves_undefined_are_nan() -> None:
    gold = np.array([0, 0, 1])
    names = ("roc_auc", "average_precision")
    answers = collect_answers(names, "single_label", gold, gold, probabilities=np.eye(2)[gold])
    for score in weighted_scores(answers).values():
        assert np.isnan(score(answers, np.array([[1.0, 2, 0], [1, 1, 1]]))).tolist() == [True, False]


def test_numbers_that_are_equal_in_a_sample_have_no_correlation() -> None:
    gold, predicted = np.array([0.1, 0.3, 0.7]), np.array([0.2, 0.6, 0.3])
    answers = collect_answers(["pearson", "spearman", "r2"], "regression", predicted, gold)
    for score in weighted_scores(answers).values():
        assert score(answers, 3.0 * np.eye(3)).tolist() == [0, 0, 0]


def test_columns_that_are_ranked_together_are_counted() -> None:
    gold = np.eye(3, dtype=np.float32)
    for name, expected in (("roc_auc_micro", 3), ("roc_auc_macro", 1), ("f1_micro", 1)):
        answers = collect_answers([name], "multi_label", gold, gold, probabilities=gold)
        assert num_columns(answers) == expected


def test_questions_without_an_answer_are_scored_apart() -> None:
    spans = [{"text": text, "best_text": text, "null_odds": 0.0} for text in ("a dog", "", "cat")]
    answers = collect_answers(["squad_v2"], "question_answering", spans, [["dog"], [], []])
    functions = weighted_scores(answers)
    scores = [functions[name](answers, np.ones((1, 3))).item() for name in ("HasAns_exact", "NoAns_exact")]
    assert scores == [100, 50]
    answers = collect_answers(["squad_v2"], "question_answering", spans[:1], [["dog"]])
    assert "NoAns_exact" not in weighted_scores(answers)
