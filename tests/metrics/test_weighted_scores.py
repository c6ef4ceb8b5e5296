"""Scores of weighted rows against scikit-learn, SciPy and seqeval on rows that are repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from scipy import stats
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from bertcli.metrics.answers import collect_answers
from bertcli.metrics.scores import F_BETAS, METRICS, compute_scores, num_columns, score_functions, score_names

from ..conftest import score_predictions

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


def reference_scores(name: str, kind: str, sample: dict[str, Any], pos_label: int) -> dict[str, float]:
    """The scores of a metric as scikit-learn, SciPy, seqeval or the scripts of SQuAD compute them."""
    predicted, gold, values = sample["predictions"], sample["references"], sample.get("probabilities")
    base, _, average = name.rpartition("_") if name.endswith(("_macro", "_micro", "_weighted")) else (name, "", "")
    if kind == "question_answering":
        return score_predictions([name], kind, predicted, gold)
    if kind == "token_classification":
        kept = [[index for index, tag in enumerate(row) if tag is not None] for row in gold]
        sides = [[[row[index] for index in indices] for row, indices in zip(rows, kept, strict=True)]
                 for rows in (gold, predicted)]  # fmt: skip
        accuracy = {"accuracy": sklearn.metrics.accuracy_score(*map(np.concatenate, sides))}
        if name == "accuracy":
            return accuracy
        scores = precision_recall_fscore_support(*sides, average="micro", zero_division=0)
        return dict(zip(("precision", "recall", "f1"), scores, strict=False)) | accuracy
    options = {"average": average or "binary", "pos_label": pos_label, "zero_division": 0.0}
    if base in F_BETAS:
        value = sklearn.metrics.fbeta_score(gold, predicted, beta=F_BETAS[base], **options)
    elif base in ("precision", "recall"):
        value = getattr(sklearn.metrics, f"{base}_score")(gold, predicted, **options)
    elif name in ("accuracy", "exact_match"):
        value = sklearn.metrics.accuracy_score(gold, predicted)
    elif name == "matthews":
        value = sklearn.metrics.matthews_corrcoef(gold, predicted)
    elif kind == "regression":
        functions = {
            "mse": sklearn.metrics.mean_squared_error,
            "rmse": sklearn.metrics.root_mean_squared_error,
            "mae": sklearn.metrics.mean_absolute_error,
            "r2": sklearn.metrics.r2_score,
            "pearson": lambda gold, predicted: stats.pearsonr(gold, predicted).statistic,
            "spearman": lambda gold, predicted: stats.spearmanr(gold, predicted).statistic,
        }
        value = functions[name](gold, predicted)
    else:
        value = reference_probability_score(base, average, gold, values, pos_label)
    return {name: float(value)}


def reference_probability_score(name: str, average: str, gold: np.ndarray, values: np.ndarray, pos_label: int) -> float:
    is_gold = gold > 0 if gold.ndim == 2 else np.eye(values.shape[1], dtype=bool)[gold]
    if name in ("roc_auc", "average_precision"):
        function = getattr(sklearn.metrics, f"{name}_score")
        if average == "micro":
            return function(is_gold.ravel(), values.ravel())
        columns = range(values.shape[1]) if average else [pos_label]
        is_defined = is_gold.any(0) & (~is_gold.all(0) | (name != "roc_auc"))
        scores = [function(is_gold[:, column], values[:, column]) for column in columns if is_defined[column]]
        return float(np.mean(scores))
    if name == "log_loss":
        if gold.ndim == 1:
            return sklearn.metrics.log_loss(gold, values, labels=range(values.shape[1]))
        return float(np.mean([sklearn.metrics.log_loss(is_gold[:, column], values[:, column], labels=[False, True])
                              for column in range(values.shape[1])]))  # fmt: skip
    if name == "brier":
        per_row = ((values - is_gold) ** 2).sum(1)
        return float(per_row.mean() / (1 if gold.ndim == 1 and values.shape[1] > 2 else values.shape[1]))
    if name == "mrr":
        return sklearn.metrics.label_ranking_average_precision_score(is_gold, values)
    bins = [[] for _ in range(10)]  # of the expected calibration error
    for row, label in zip(values, gold, strict=True):
        bins[min(9, int(np.ceil(row.max() * 10)) - 1)].append(row.max() - (row.argmax() == label))
    return sum(abs(sum(excess)) for excess in bins) / len(gold)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, row in METRICS.items() for kind in row.answer_kinds])
def test_scores_of_a_split_and_of_samples_are_those_of_the_reference(name: str, kind: str) -> None:
    random = np.random.default_rng(0)
    given = random_answers(kind, random)
    binary = kind == "single_label" and METRICS[name].is_binary
    if binary:
        given = {key: values % 2 if values.ndim == 1 else values[:, :2] for key, values in given.items()}
    if name == "log_loss" and kind != "multi_label":  # scikit-learn warns unless probabilities sum to one
        given["probabilities"] = random.dirichlet(np.ones(3), N)
    pos_label = 0 if binary else 1
    answers = collect_answers([name], kind, **given, pos_label=pos_label)
    samples = [np.arange(N), *random.integers(0, N, (6, N))]
    functions = score_functions(answers)
    assert {*score_names([name])} - TUNED <= {*functions}
    weights = np.stack([np.bincount(rows, minlength=N) for rows in samples]).astype(float)
    for score, function in functions.items():
        values = function(answers, weights)
        for rows, value in zip(samples, values, strict=True):
            sample = {key: drawn(values, rows) if key != "labels" else values for key, values in given.items()}
            expected = reference_scores(name, kind, sample, pos_label)
            assert value == pytest.approx(expected[score], rel=1e-12, abs=1e-12), score
        whole = compute_scores(answers)[score]
        assert whole == pytest.approx(reference_scores(name, kind, given, pos_label)[score], rel=1e-12, abs=1e-12)


def test_scores_that_a_sample_leaves_undefined_are_nan() -> None:
    gold = np.array([0, 0, 1])
    names = ("roc_auc", "average_precision")
    answers = collect_answers(names, "single_label", gold, gold, probabilities=np.eye(2)[gold])
    for score in score_functions(answers).values():
        assert np.isnan(score(answers, np.array([[1.0, 2, 0], [1, 1, 1]]))).tolist() == [True, False]


def test_numbers_that_are_equal_in_a_sample_have_no_correlation() -> None:
    gold, predicted = np.array([0.1, 0.3, 0.7]), np.array([0.2, 0.6, 0.3])
    answers = collect_answers(["pearson", "spearman", "r2"], "regression", predicted, gold)
    for score in score_functions(answers).values():
        assert score(answers, 3.0 * np.eye(3)).tolist() == [0, 0, 0]


def test_columns_that_are_ranked_together_are_counted() -> None:
    gold = np.eye(3, dtype=np.float32)
    for name, expected in (("roc_auc_micro", 3), ("roc_auc_macro", 1), ("f1_micro", 1)):
        answers = collect_answers([name], "multi_label", gold, gold, probabilities=gold)
        assert num_columns(answers) == expected


def test_questions_without_an_answer_are_scored_apart() -> None:
    spans = [{"text": text, "best_text": text, "null_odds": 0.0} for text in ("a dog", "", "cat")]
    answers = collect_answers(["squad_v2"], "question_answering", spans, [["dog"], [], []])
    functions = score_functions(answers)
    scores = [functions[name](answers, np.ones((1, 3))).item() for name in ("HasAns_exact", "NoAns_exact")]
    assert scores == [100, 50]
    answers = collect_answers(["squad_v2"], "question_answering", spans[:1], [["dog"]])
    assert "NoAns_exact" not in score_functions(answers)
