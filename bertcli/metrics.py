"""Name → metric. Bundled `evaluate.Metric` classes, because `evaluate.load` by name needs a network.

The arithmetic is scikit-learn's and SciPy's. All are such that higher is better. Shapes: N examples, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value

from bertcli.errors import DataError, did_you_mean

Score = Callable[[np.ndarray, np.ndarray], float]


def _f1(average: str) -> Score:
    def score(predictions: np.ndarray, references: np.ndarray) -> float:
        from sklearn.metrics import f1_score

        return f1_score(references, predictions, average=average, zero_division=0.0)

    return score


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(references, predictions)


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(references, predictions)


def _correlation(kind: str) -> Score:
    def score(predictions: np.ndarray, references: np.ndarray) -> float:
        from scipy import stats

        if len(references) < 2:
            raise DataError(f"{kind} needs two or more examples, found {len(references)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            correlation = getattr(stats, kind)(predictions, references).statistic
        # Undefined for a constant answer; an uninformative answer scores 0, as Matthews' does.
        return 0.0 if np.isnan(correlation) else correlation

    return score


SCORES: dict[str, tuple[Score, str]] = {
    "accuracy": (_accuracy, "single_label"),
    "f1": (_f1("binary"), "single_label"),
    "f1_macro": (_f1("macro"), "single_label multi_label"),
    "f1_micro": (_f1("micro"), "single_label multi_label"),
    "matthews": (_matthews, "single_label"),
    "exact_match": (_accuracy, "multi_label"),
    "pearson": (_correlation("pearsonr"), "regression"),
    "spearman": (_correlation("spearmanr"), "regression"),
}


class BundledMetric(evaluate.Metric):
    """One of `SCORES` behind the `evaluate` interface: `compute(predictions=…, references=…)`."""

    def __init__(self, name: str, problem: str):
        self._score_name, self._problem = name, problem
        super().__init__(config_name=name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        value: Any = {"single_label": Value("int64"), "regression": Value("float64")}.get(self._problem)
        value = value or List(Value("float32"))
        return evaluate.MetricInfo(
            description=f"{self._score_name} for {self._problem} answers",
            citation="",
            features=Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        score, _ = SCORES[self._score_name]
        return {self._score_name: float(score(np.asarray(predictions), np.asarray(references)))}


def load_metric(name: str, problem: str) -> BundledMetric:
    """The metric called `name` for answers of the kind `problem`.

    Raises:
        DataError: there is no such metric, or it does not fit this kind of answer.
    """
    fitting = [known for known, (_, problems) in SCORES.items() if problem in problems.split()]
    if name not in fitting:
        cure = did_you_mean(name, fitting)
        raise DataError(f"found metric {name!r}, expected one that fits {problem}: {', '.join(fitting)}.{cure}")
    return BundledMetric(name, problem)


def compute_metrics(
    names: Iterable[str], problem: str, predictions: np.ndarray, references: np.ndarray
) -> dict[str, float]:
    """Each named metric of N predictions against N references ([N], or [N, C] for several labels)."""
    scores: dict[str, float] = {}
    for name in names:
        scores |= load_metric(name, problem).compute(predictions=predictions, references=references)
    return scores
