"""Scores as functions of weighted rows, for many weightings at once.

With weights of 1, they are the scores of a split. A bootstrap sample is how often each row was drawn, so 1,000 samples
cost some matrix products instead of 1,000 calls of scikit-learn, whose scores these are: for every weighting by whole
numbers, those of the rows, each repeated as often as its weight says.

Shapes: N rows, B weightings, C labels (or choices), G groups of rows with equal values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bertcli.metrics.answers import Answers
from bertcli.metrics.calibration import NUM_BINS, confidence_bins

WeightedScore = Callable[[Answers, np.ndarray], np.ndarray]
"""(answers to N rows, weights [B, N]) → scores [B]; NaN where the score is undefined."""
RowValues = Callable[[Answers], np.ndarray]
"""(answers to N rows) → a value for each row [N]."""
MAX_ROUNDING = 1e-12  # of a mean of equal numbers, relative to it; float32 predictions differ by more


def _divide(numerator: np.ndarray, denominator: np.ndarray, default: float = 0.0) -> np.ndarray:
    """Return the quotients, and `default` where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(denominator, default), where=denominator != 0)


def mean(row_values: RowValues, scale: float = 1.0) -> WeightedScore:
    """Return the score that is the mean of a value of each row, times `scale`."""
    return lambda answers, weights: scale * (weights @ row_values(answers)) / weights.sum(1)


def is_right(answers: Answers) -> np.ndarray:
    """Return whether each row is right; in multi-label tasks, all of its labels."""
    is_equal = answers["predicted"] == answers["gold"]
    return is_equal.all(1) if is_equal.ndim == 2 else is_equal


def label_indicators(gold: np.ndarray, num_labels: int) -> np.ndarray:
    """Return whether each row has each label, from label IDs [N] or multi-hot labels [N, C]. [N, C]"""
    return gold > 0 if gold.ndim == 2 else gold[:, None] == np.arange(num_labels)


def accuracy(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """Return the share of right rows; of tags, the share of right words among those with a gold tag."""
    if "words" not in answers:
        return mean(is_right)(answers, weights)
    right, total = (weights @ answers["words"]).T
    return _divide(right, total)


def _label_totals(answers: Answers, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the total weights of right predictions, predictions and gold labels, by label. Each [B, C]"""
    predicted, gold = answers["predicted"], answers["gold"]
    num_labels = 1 + int(max(predicted.max(), gold.max(), answers.get("pos_label", 0)))  # only of label IDs
    if gold.ndim == 2:
        is_predicted, is_gold = (
            label_indicators(values, num_labels).astype(np.float64) for values in (predicted, gold)
        )
        return weights @ (is_predicted * is_gold), weights @ is_predicted, weights @ is_gold

    def totals(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(labels, row_weights, num_labels) for row_weights in weights])

    right = predicted == gold
    return totals(gold[right], weights[:, right]), totals(predicted, weights), totals(gold, weights)


def f_score(predicted_share: float, average: str) -> WeightedScore:
    """Return precision (`predicted_share` 1), recall (0), or the F score between them (F1: 0.5), as scikit-learn does.

    Without predictions (or rows) of a label, it is 0.

    Args:
        average: over labels: `macro`, `micro`, `weighted` (by gold labels), or `binary` for the positive label only.
    """

    def score(answers: Answers, weights: np.ndarray) -> np.ndarray:
        right, predicted, gold = _label_totals(answers, weights)
        possible = predicted_share * predicted + (1 - predicted_share) * gold
        if average == "micro":
            return _divide(right.sum(1), possible.sum(1))
        scores = _divide(right, possible)
        if average == "binary":
            return np.asarray(scores[:, int(answers["pos_label"])])
        if average == "weighted":
            return _divide((gold * scores).sum(1), gold.sum(1))
        # A label that is neither gold nor predicted does not count, unless each row has any number of labels.
        counts = np.ones_like(gold) if answers["gold"].ndim == 2 else (predicted + gold > 0).astype(np.float64)
        return (counts * scores).sum(1) / counts.sum(1)

    return score


def matthews(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """Return the correlation coefficient of Gorodkin (2004), which is that of Matthews for two labels."""
    right, predicted, gold = _label_totals(answers, weights)
    total = weights.sum(1)
    covariance = right.sum(1) * total - (predicted * gold).sum(1)
    variances = (total**2 - (values**2).sum(1) for values in (predicted, gold))
    return _divide(covariance, np.sqrt(np.prod([*variances], axis=0)))


def _gold_indicators(answers: Answers) -> np.ndarray:
    return label_indicators(answers["gold"], answers["probabilities"].shape[1])


def row_log_loss(answers: Answers) -> np.ndarray:
    """Return -ln(p) of the gold label; in multi-label tasks, the mean over each label's presence or absence. [N]"""
    values, is_gold = answers["probabilities"], _gold_indicators(answers)
    epsilon = np.finfo(values.dtype).eps  # as scikit-learn
    losses = -np.log(np.clip(np.where(is_gold, values, 1 - values), epsilon, 1 - epsilon))
    return np.asarray(losses.mean(1) if answers["gold"].ndim == 2 else losses[is_gold])


def row_brier(answers: Answers) -> np.ndarray:
    """Return the mean squared difference between the probability of a label and whether the row has it. [N]

    With more than two labels of which each row has one, it is the sum over the labels, from 0 to 2 (Brier 1950).
    """
    values = answers["probabilities"]
    squares = (values - _gold_indicators(answers)) ** 2
    has_sum = answers["gold"].ndim == 1 and values.shape[1] > 2
    return np.asarray(squares.sum(1) if has_sum else squares.mean(1))


def reciprocal_ranks(answers: Answers) -> np.ndarray:
    """Return 1 / rank of the gold choice; among equal probabilities, it ranks last. [N]"""
    values = answers["probabilities"]
    return np.asarray(1 / (values >= values[_gold_indicators(answers)][:, None]).sum(1))


def calibration_error(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """Return the expected calibration error: the mean, over the rows, of |accuracy - mean confidence| of their bin."""
    values = answers["probabilities"]
    confidences = values.max(1)
    excess = confidences - (values.argmax(1) == answers["gold"])
    in_bin = np.equal.outer(confidence_bins(confidences), np.arange(NUM_BINS))
    return np.asarray(np.abs(weights @ (excess[:, None] * in_bin)).sum(1) / weights.sum(1))


def squared_errors(answers: Answers) -> np.ndarray:
    """Return the squared error of each number. [N]"""
    return (answers["predicted"] - answers["gold"]) ** 2


def absolute_errors(answers: Answers) -> np.ndarray:
    """Return the absolute error of each number. [N]"""
    return np.abs(answers["predicted"] - answers["gold"])


def root_mean_squared_error(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """Return the square root of the mean squared error."""
    return np.sqrt(mean(squared_errors)(answers, weights))


def r2(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """Return the coefficient of determination."""
    residual, total = weights @ squared_errors(answers), (weights * _deviations(answers["gold"], weights) ** 2).sum(1)
    # For equal gold values, scikit-learn returns 1 if all predictions are right, else 0.
    return np.where(total > 0, 1 - _divide(residual, total), (residual == 0).astype(np.float64))


def _deviations(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return values [N] or [B, N] minus their mean; exactly 0 where those of a weighting are equal. [B, N]"""
    means = (weights * values).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    deviations = np.where(weights > 0, values - means, 0.0)
    is_constant = np.abs(deviations).max(1, keepdims=True) <= MAX_ROUNDING * np.abs(means)
    return np.where(is_constant, 0.0, deviations)


def _correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the correlation of two variables [N] or [B, N]; 0 if one of them is constant. [B]"""
    first, second = (_deviations(values, weights) for values in (first, second))
    covariance = (weights * first * second).sum(1)
    variances = [(weights * values**2).sum(1) for values in (first, second)]
    return _divide(covariance, np.sqrt(variances[0] * variances[1]))


def pearson(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """Return the correlation of predictions and gold numbers; 0 if the predictions are constant, as for Matthews."""
    return _correlation(answers["predicted"], answers["gold"], weights)


def spearman(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """Return the correlation of the ranks of predictions and gold numbers; 0 if the predictions are constant."""
    return _correlation(_ranks(answers["predicted"], weights), _ranks(answers["gold"], weights), weights)


def _group_totals(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of each row [N], by increasing value, and the total weights of the groups [B, G]."""
    _, groups = np.unique(values, return_inverse=True)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return groups, np.add.reduceat(weights[:, order], starts, axis=1)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean rank of each row among the weighted rows, as if each were there as often as its weight. [B, N]"""
    groups, totals = _group_totals(values, weights)
    return np.asarray((totals.cumsum(1) - totals / 2)[:, groups])


def roc_auc(values: np.ndarray, is_gold: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the chance that a row with the label has a higher value than one without it; equal ones count half. [B]"""
    _, positive = _group_totals(values, weights * is_gold)
    _, negative = _group_totals(values, weights * ~is_gold)
    lower = negative.cumsum(1) - negative / 2
    return _divide((positive * lower).sum(1), positive.sum(1) * negative.sum(1), np.nan)


def average_precision(values: np.ndarray, is_gold: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean precision over the rows with the label, each at the threshold of its value. [B]"""
    _, positive = _group_totals(-values, weights * is_gold)
    _, total = _group_totals(-values, weights)
    precision = _divide(positive.cumsum(1), total.cumsum(1))
    return _divide((precision * positive).sum(1), positive.sum(1), np.nan)


def ranking(score_label: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], average: str) -> WeightedScore:
    """Return a score of how well the probability of a label ranks the rows that have it.

    Labels without a defined score are left out of a macro average: those that no row has and, for ROC-AUC, those that
    every row has.

    Args:
        average: `binary` for the positive label only; `macro` over labels; `micro` for all labels together.
    """

    def score(answers: Answers, weights: np.ndarray) -> np.ndarray:
        values, is_gold = answers["probabilities"], _gold_indicators(answers)
        if average == "micro":
            return score_label(values.ravel(), is_gold.ravel(), np.repeat(weights, values.shape[1], axis=1))
        labels = [int(answers["pos_label"])] if average == "binary" else range(values.shape[1])
        scores = np.stack([score_label(values[:, label], is_gold[:, label], weights) for label in labels])
        is_defined = ~np.isnan(scores)
        return _divide(np.where(is_defined, scores, 0.0).sum(0), is_defined.sum(0).astype(np.float64), np.nan)

    return score


def entity_score(predicted_share: float) -> WeightedScore:
    """Return precision, recall or an F score of entities, as `f_score`."""

    def score(answers: Answers, weights: np.ndarray) -> np.ndarray:
        right, predicted, gold = (weights @ answers["entities"]).T
        return _divide(right, predicted_share * predicted + (1 - predicted_share) * gold)

    return score


def question_mean(name: str, has_answer: bool) -> WeightedScore:
    """Return the mean of a score, in percent, over the questions that have an answer, or over those that have none."""

    def score(answers: Answers, weights: np.ndarray) -> np.ndarray:
        members = weights * (answers["has_answer"] == has_answer)
        return 100 * _divide(members @ answers[name], members.sum(1), np.nan)

    return score
