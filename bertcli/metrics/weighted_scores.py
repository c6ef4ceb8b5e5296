"""Scores of weighted rows, for many weightings at once, as resampling needs them.

A bootstrap sample is how often each row was drawn, so 1,000 samples cost some matrix products here instead of 1,000
calls of scikit-learn. For every weighting by whole numbers, a score is that of `bertcli.metrics.scores` on the rows,
each repeated as often as its weight says.

Shapes: N rows, B weightings, C labels (or choices), G groups of rows with equal values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter

import numpy as np

from bertcli.metrics.answers import METRIC_NAMES, Answers, num_rows
from bertcli.metrics.calibration import NUM_BINS, confidence_bins
from bertcli.metrics.scores import AVERAGES, F_BETAS, label_indicators, row_brier

WeightedScore = Callable[[Answers, np.ndarray], np.ndarray]
"""(answers to N rows, weights [B, N]) → scores [B]; NaN where the score is undefined."""
Scores = dict[str, WeightedScore]
"""Scores of a metric, by name."""
RowValues = Callable[[Answers], np.ndarray]
"""(answers to N rows) → a value for each row [N]."""
MAX_ROUNDING = 1e-12  # of a mean of equal numbers, relative to it; float32 predictions differ by more


def weighted_scores(answers: Answers) -> dict[str, WeightedScore]:
    """Return the functions for the scores of the answers' metrics, by the name of the score.

    Scores that are tuned on the rows themselves, such as `best_f1` of SQuAD 2.0, are left out, as are those of groups
    that have no rows, such as `NoAns_f1`.
    """
    functions: dict[str, WeightedScore] = {}
    for name in str(answers[METRIC_NAMES]).split():
        functions |= WEIGHTED_SCORES[name]
    if "has_answer" in answers:
        for group, has_answer in ANSWERABLE.items():
            if has_answer not in answers["has_answer"]:
                functions = {score: function for score, function in functions.items() if not score.startswith(group)}
    return functions


def num_columns(answers: Answers) -> int:
    """Return how many values of a row are scored at once: C if one of the metrics ranks all labels together, else 1."""
    pools = {f"{name}_micro" for name in RANKING} & {*str(answers[METRIC_NAMES]).split()}
    return answers["probabilities"].shape[1] if pools else 1


def compute_scores(answers: Answers) -> dict[str, float]:
    """Return the scores of the answers, by name, as far as they are functions of weighted rows."""
    ones = np.ones((1, num_rows(answers)))
    return {name: score(answers, ones).item() for name, score in weighted_scores(answers).items()}


def _divide(numerator: np.ndarray, denominator: np.ndarray, default: float = 0.0) -> np.ndarray:
    """Return the quotients, and `default` where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(denominator, default), where=denominator != 0)


def _mean(row_values: RowValues, scale: float = 1.0) -> WeightedScore:
    return lambda answers, weights: scale * (weights @ row_values(answers)) / weights.sum(1)


def is_right(answers: Answers) -> np.ndarray:
    """Return whether each row is right; in multi-label tasks, all of its labels."""
    is_equal = answers["predicted"] == answers["gold"]
    return is_equal.all(1) if is_equal.ndim == 2 else is_equal


def _accuracy(answers: Answers, weights: np.ndarray) -> np.ndarray:
    if "words" not in answers:
        return _mean(is_right)(answers, weights)
    right, total = (weights @ answers["words"]).T
    return _divide(right, total)


def _label_totals(answers: Answers, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the total weights of right predictions, predictions and gold labels, by label. Each [B, C]"""
    predicted, gold = answers["predicted"], answers["gold"]
    num_labels = 1 + int(max(predicted.max(), gold.max(), answers.get("pos_label", 0)))
    is_predicted, is_gold = (label_indicators(values, num_labels).astype(np.float64) for values in (predicted, gold))
    return weights @ (is_predicted * is_gold), weights @ is_predicted, weights @ is_gold


def _f_score(predicted_share: float, average: str) -> WeightedScore:
    """Return precision (`predicted_share` 1), recall (0), or the F score between them (F1: 0.5), as scikit-learn does.

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


def _matthews(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """Return the correlation coefficient of Gorodkin (2004), which is that of Matthews for two labels."""
    right, predicted, gold = _label_totals(answers, weights)
    total = weights.sum(1)
    covariance = right.sum(1) * total - (predicted * gold).sum(1)
    variances = (total**2 - (values**2).sum(1) for values in (predicted, gold))
    return _divide(covariance, np.sqrt(np.prod([*variances], axis=0)))


def _gold_indicators(answers: Answers) -> np.ndarray:
    return label_indicators(answers["gold"], answers["probabilities"].shape[1])


def _row_log_loss(answers: Answers) -> np.ndarray:
    values, is_gold = answers["probabilities"], _gold_indicators(answers)
    epsilon = np.finfo(values.dtype).eps  # as scikit-learn
    losses = -np.log(np.clip(np.where(is_gold, values, 1 - values), epsilon, 1 - epsilon))
    return np.asarray(losses.mean(1) if answers["gold"].ndim == 2 else losses[is_gold])


def _reciprocal_ranks(answers: Answers) -> np.ndarray:
    values = answers["probabilities"]
    return np.asarray(1 / (values >= values[_gold_indicators(answers)][:, None]).sum(1))


def _calibration_error(answers: Answers, weights: np.ndarray) -> np.ndarray:
    values = answers["probabilities"]
    confidences = values.max(1)
    excess = confidences - (values.argmax(1) == answers["gold"])
    in_bin = np.equal.outer(confidence_bins(confidences), np.arange(NUM_BINS))
    return np.asarray(np.abs(weights @ (excess[:, None] * in_bin)).sum(1) / weights.sum(1))


def _errors(answers: Answers) -> np.ndarray:
    return answers["predicted"] - answers["gold"]


def _root_mean_squared_error(answers: Answers, weights: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean(lambda answers: _errors(answers) ** 2)(answers, weights))


def _r2(answers: Answers, weights: np.ndarray) -> np.ndarray:
    residual, total = weights @ _errors(answers) ** 2, (weights * _deviations(answers["gold"], weights) ** 2).sum(1)
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


def _pearson(answers: Answers, weights: np.ndarray) -> np.ndarray:
    return _correlation(answers["predicted"], answers["gold"], weights)


def _spearman(answers: Answers, weights: np.ndarray) -> np.ndarray:
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


def _roc_auc(values: np.ndarray, is_gold: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the chance that a row with the label has a higher value than one without it; equal ones count half. [B]"""
    _, positive = _group_totals(values, weights * is_gold)
    _, negative = _group_totals(values, weights * ~is_gold)
    lower = negative.cumsum(1) - negative / 2
    return _divide((positive * lower).sum(1), positive.sum(1) * negative.sum(1), np.nan)


def _average_precision(values: np.ndarray, is_gold: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean precision over the rows with the label, each at the threshold of its value. [B]"""
    _, positive = _group_totals(-values, weights * is_gold)
    _, total = _group_totals(-values, weights)
    precision = _divide(positive.cumsum(1), total.cumsum(1))
    return _divide((precision * positive).sum(1), positive.sum(1), np.nan)


def _ranking(score_label: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], average: str) -> WeightedScore:
    """Return a score of how well probabilities rank rows: of the positive label, or averaged over labels."""

    def score(answers: Answers, weights: np.ndarray) -> np.ndarray:
        values, is_gold = answers["probabilities"], _gold_indicators(answers)
        if average == "micro":
            return score_label(values.ravel(), is_gold.ravel(), np.repeat(weights, values.shape[1], axis=1))
        labels = [int(answers["pos_label"])] if average == "binary" else range(values.shape[1])
        scores = np.stack([score_label(values[:, label], is_gold[:, label], weights) for label in labels])
        is_defined = ~np.isnan(scores)
        return _divide(np.where(is_defined, scores, 0.0).sum(0), is_defined.sum(0).astype(np.float64), np.nan)

    return score


def _entity_score(predicted_share: float) -> WeightedScore:
    def score(answers: Answers, weights: np.ndarray) -> np.ndarray:
        right, predicted, gold = (weights @ answers["entities"]).T
        return _divide(right, predicted_share * predicted + (1 - predicted_share) * gold)

    return score


def _question_mean(name: str, has_answer: bool) -> WeightedScore:
    """Return the mean of a score, in percent, over the questions that have an answer, or over those that have none."""

    def score(answers: Answers, weights: np.ndarray) -> np.ndarray:
        members = weights * (answers["has_answer"] == has_answer)
        return 100 * _divide(members @ answers[name], members.sum(1), np.nan)

    return score


def _by_average(name: str, score: Callable[[str], WeightedScore], averages: Iterable[str]) -> dict[str, Scores]:
    """Return the rows of a metric of the positive label, and of its averages over labels."""
    averaged = {f"{name}_{average}": {f"{name}_{average}": score(average)} for average in averages}
    return {name: {name: score("binary")}} | averaged


RANKING = {"roc_auc": _roc_auc, "average_precision": _average_precision}
RANKING_AVERAGES = ("macro", "micro")
ANSWERABLE = {"HasAns": True, "NoAns": False}
PREDICTED_SHARES = {"precision": 1.0, "recall": 0.0, **{name: 1 / (1 + beta**2) for name, beta in F_BETAS.items()}}
WEIGHTED_SCORES: dict[str, Scores] = {
    "accuracy": {"accuracy": _accuracy},
    "exact_match": {"exact_match": _accuracy},
    "matthews": {"matthews": _matthews},
    **{
        metric: row
        for name, share in PREDICTED_SHARES.items()
        for metric, row in _by_average(name, partial(_f_score, share), AVERAGES).items()
    },
    **{
        metric: row
        for name, score_label in RANKING.items()
        for metric, row in _by_average(name, partial(_ranking, score_label), RANKING_AVERAGES).items()
    },
    "log_loss": {"log_loss": _mean(_row_log_loss)},
    "brier": {"brier": _mean(lambda answers: row_brier(answers["probabilities"], answers["gold"]))},
    "calibration_error": {"calibration_error": _calibration_error},
    "mrr": {"mrr": _mean(_reciprocal_ranks)},
    "pearson": {"pearson": _pearson},
    "spearman": {"spearman": _spearman},
    "mse": {"mse": _mean(lambda answers: _errors(answers) ** 2)},
    "rmse": {"rmse": _root_mean_squared_error},
    "mae": {"mae": _mean(lambda answers: np.abs(_errors(answers)))},
    "r2": {"r2": _r2},
    "seqeval": {name: _entity_score(PREDICTED_SHARES[name]) for name in ("precision", "recall", "f1")}
    | {"accuracy": _accuracy},
    "squad": {name: _mean(itemgetter(name), 100) for name in ("exact_match", "f1")},
    "squad_v2": {name: _mean(itemgetter(name), 100) for name in ("exact", "f1")}
    | {
        f"{group}_{name}": _question_mean(name, has_answer)
        for group, has_answer in ANSWERABLE.items()
        for name in ("exact", "f1")
    },
}
