"""Metrics by name, also as `evaluate.Metric` classes (`evaluate.load` by name requires network access).

scikit-learn, SciPy and seqeval do the arithmetic. For every metric, higher is better.

Shapes: N predictions, C classes.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
import statistics
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.errors import DataError, did_you_mean
from bertcli.tasks.tags import infer_tag_set, read_tag_set, require_readable
from bertcli.tasks.task import MAIN_SCORES, Task

if TYPE_CHECKING:
    import evaluate

ScoreFunction = Callable[..., float | dict[str, float]]
"""(N predictions, N references) → the score, or several scores by name."""


def _f1(average: str) -> ScoreFunction:
    def score(predictions: np.ndarray, references: np.ndarray, pos_label: int = 1) -> float:
        from sklearn.metrics import f1_score

        return f1_score(references, predictions, average=average, zero_division=0.0, pos_label=pos_label)

    return score


def _accuracy(predictions: Any, references: Any) -> float:
    """Return the fraction of correct predictions; for tags (lists of lists), only words with a gold tag count."""
    if not isinstance(references, np.ndarray):
        predictions, references = (list(itertools.chain(*rows)) for rows in _tagged(predictions, references))
        return sum(map(operator.eq, predictions, references)) / max(1, len(references))
    from sklearn.metrics import accuracy_score

    return accuracy_score(references, predictions)


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(references, predictions)


def _correlation(name: str) -> ScoreFunction:
    def score(predictions: np.ndarray, references: np.ndarray) -> float:
        from scipy import stats

        if len(references) < 2:
            raise DataError(f"{name} needs at least two examples, found {len(references)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            correlation = getattr(stats, name)(predictions, references).statistic
        # Undefined for constant predictions; score them as 0, like the Matthews correlation.
        return 0.0 if np.isnan(correlation) else correlation

    return score


def _seqeval(
    predictions: list[list[str]], references: list[list[str | None]], labels: Sequence[str] | None = None
) -> dict[str, float]:
    """Return entity-level precision, recall and F1 as in conlleval, and token-level accuracy.

    Args:
        predictions: N rows of tags.
        references: N rows of gold tags; None for words without one, which are ignored.
        labels: all tags, from which the tagging scheme is inferred (see `bertcli.tasks.tags`); if None, it is inferred
            from the tags that occur.

    Raises:
        DataError: if the tags follow no known tagging scheme, or the scheme is ambiguous.
    """
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    tag_set = read_tag_set(tuple(labels)) if labels else infer_tag_set([*predictions, *references])
    require_readable(tag_set)
    accuracy = _accuracy(predictions, references)
    predicted, gold = (list(map(tag_set.to_iobes, rows)) for rows in _tagged(predictions, references))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an entity type without examples
        precision, recall, f1, _ = precision_recall_fscore_support(gold, predicted, average="micro", zero_division=0)
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "accuracy": float(accuracy)}


def _tagged(predictions: Any, references: Any) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rows of predicted and gold tags without the words that lack a gold tag (None)."""
    if not any(None in row for row in references):
        return predictions, references
    kept = [[index for index, tag in enumerate(row) if tag is not None] for row in references]
    return tuple(  # type: ignore[return-value]
        [[row[index] for index in indices] for row, indices in zip(rows, kept, strict=True)]
        for rows in (predictions, references)
    )


ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lowercase, and remove ASCII punctuation, articles and extra whitespace, as the SQuAD script does."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """Return 1 if the answers are equal after normalization, else 0."""
    return float(normalize_answer(answer) == normalize_answer(gold))


def token_f1(answer: str, gold: str) -> float:
    """Return token-level F1 by the rules of SQuAD 1.1: 0 if no token is shared or either answer is empty."""
    answer_tokens, gold_tokens = normalize_answer(answer).split(), normalize_answer(gold).split()
    num_shared = sum((Counter(answer_tokens) & Counter(gold_tokens)).values())
    if num_shared == 0:
        return 0.0
    precision, recall = num_shared / len(answer_tokens), num_shared / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def token_f1_v2(answer: str, gold: str) -> float:
    """Return token-level F1 by the rules of SQuAD 2.0: 1 if both answers are empty, 0 if only one is."""
    if not normalize_answer(answer).split() or not normalize_answer(gold).split():
        return float(normalize_answer(answer).split() == normalize_answer(gold).split())
    return token_f1(answer, gold)


def score_squad(predictions: Sequence[dict[str, Any]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return SQuAD 1.1 `exact_match` and `f1` in percent, with the maximum over each question's gold answers."""
    texts = [answer["text"] for answer in predictions]
    golds = [list(answers) or [""] for answers in references]
    values = {
        name: _max_over_golds(rule, texts, golds) for name, rule in (("exact_match", exact_match), ("f1", token_f1))
    }
    # The official script accumulates with `+=`; `sum` and NumPy's `mean` may differ in the last digits.
    return {name: 100.0 * functools.reduce(operator.add, scores, 0) / len(scores) for name, scores in values.items()}


def score_squad_v2(predictions: Sequence[dict[str, Any]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return SQuAD 2.0 scores in percent, with the names of the official script and identical in every digit.

    `exact` and `f1` score the answers as predicted. `best_exact` and `best_f1` are the highest scores over all
    no-answer thresholds, reached at `best_exact_thresh` and `best_f1_thresh`. These thresholds are tuned on the gold
    answers: use them to choose the recipe's threshold, but do not report the `best_` scores.
    """
    # Gold answers that are empty after normalization are ignored, but their questions still count as answerable.
    golds = [[answer for answer in answers if normalize_answer(answer)] or [""] for answers in references]
    has_answer = [bool(answers) for answers in references]
    texts = [answer["text"] for answer in predictions]
    rules = {"exact": exact_match, "f1": token_f1_v2}
    values = {name: _max_over_golds(rule, texts, golds) for name, rule in rules.items()}
    scores = {name: _percent(value) for name, value in values.items()}
    for group, is_member in (("HasAns", True), ("NoAns", False)):
        if is_member in has_answer:
            for name, value in values.items():
                members = [
                    score for score, answerable in zip(value, has_answer, strict=True) if answerable == is_member
                ]
                scores[f"{group}_{name}"] = _percent(members)
    spans = [answer["best_text"] for answer in predictions]
    null_odds = np.array([answer["null_odds"] for answer in predictions])
    for name, rule in rules.items():
        span_scores = _max_over_golds(rule, spans, golds)
        best, threshold = best_no_answer_threshold(span_scores, spans, null_odds, np.array(has_answer))
        scores |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return scores


def best_no_answer_threshold(
    scores: Sequence[float], answers: Sequence[str], null_odds: np.ndarray, has_answer: np.ndarray
) -> tuple[float, float]:
    """Return the best score in percent over all no-answer thresholds, and the threshold that achieves it.

    Null odds above the threshold mean "no answer".

    Args:
        scores: N scores, one for the best span of each question.
        answers: N texts of the best spans.
        null_odds: [N] log odds of "no answer".
        has_answer: [N] whether the question has an answer.
    """
    order = np.argsort(null_odds, kind="stable")
    # Answering an unanswerable question loses the point that "no answer" would have scored.
    gains = np.where(has_answer, scores, [-1.0 if answer else 0.0 for answer in answers])[order]
    totals = np.cumsum([(~has_answer).sum(), *gains])
    best = int(totals.argmax())
    return float(100.0 * totals[best] / len(scores)), float(null_odds[order[best - 1]]) if best else 0.0


def _max_over_golds(
    rule: Callable[[str, str], float], texts: Sequence[str], golds: Sequence[Sequence[str]]
) -> list[float]:
    return [max(rule(text, gold) for gold in answers) for text, answers in zip(texts, golds, strict=True)]


def _percent(scores: Sequence[float]) -> float:
    """Return the mean in percent, computed as in the SQuAD 2.0 script: another order changes the last digits."""
    return 100.0 * sum(scores) / len(scores)


METRICS: dict[str, tuple[ScoreFunction, str]] = {  # name → function, kinds of predictions it applies to
    "accuracy": (_accuracy, "single_label multiple_choice token_classification"),
    "f1": (_f1("binary"), "single_label"),
    "f1_macro": (_f1("macro"), "single_label multi_label"),
    "f1_micro": (_f1("micro"), "single_label multi_label"),
    "matthews": (_matthews, "single_label"),
    "exact_match": (_accuracy, "multi_label"),
    "pearson": (_correlation("pearsonr"), "regression"),
    "spearman": (_correlation("spearmanr"), "regression"),
    "seqeval": (_seqeval, "token_classification"),
    "squad": (score_squad, "question_answering"),
    "squad_v2": (score_squad_v2, "question_answering"),
}

DTYPES = {  # of arrays of predictions and references
    "single_label": np.int64,
    "multiple_choice": np.int64,
    "multi_label": np.float32,
    "regression": np.float64,
}
CORRELATIONS = ("pearson", "spearman")
SCORE_NAMES = {  # for the metrics that compute several scores
    "seqeval": ("precision", "recall", "f1", "accuracy"),
    "squad": ("exact_match", "f1"),
    "squad_v2": ("exact", "f1", "best_exact", "best_f1"),
}


@cache
def _bundled_metric_class() -> type[evaluate.Metric]:
    """Return the `evaluate.Metric` class for `METRICS`; `evaluate` takes a second to import."""
    import evaluate
    from datasets import Features, List, Value

    span = {"text": Value("string"), "best_text": Value("string"), "null_odds": Value("float64")}
    features: dict[str, tuple[Any, Any]] = {  # kind → features of predictions and of references
        "single_label": (Value("int64"), Value("int64")),
        "multiple_choice": (Value("int64"), Value("int64")),
        "multi_label": (List(Value("float32")), List(Value("float32"))),
        "regression": (Value("float64"), Value("float64")),
        "token_classification": (List(Value("string")), List(Value("string"))),
        "question_answering": (span, List(Value("string"))),
    }

    class BundledMetric(evaluate.Metric):
        """One of `METRICS`: `compute(predictions=…, references=…)`."""

        def __init__(self, name: str, answer_kind: str):
            self._score_name, self._answer_kind = name, answer_kind
            super().__init__(config_name=name, keep_in_memory=True)

        def _info(self) -> evaluate.MetricInfo:
            prediction, reference = features[self._answer_kind]
            return evaluate.MetricInfo(
                description=f"{self._score_name} for {self._answer_kind} predictions",
                citation="",
                features=Features({"predictions": prediction, "references": reference}),
            )

        def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
            return compute_metric(self._score_name, self._answer_kind, predictions, references, **options)

    return BundledMetric


def load_metric(name: str, answer_kind: str) -> evaluate.Metric:
    """Load a metric by name, for programs that use `evaluate`; its scores are those of `compute_metric`.

    Raises:
        DataError: as `check_metric`.
    """
    check_metric(name, answer_kind)
    return _bundled_metric_class()(name, answer_kind)


def check_metric(name: str, answer_kind: str) -> None:
    """Check that a metric applies to one kind of prediction, without importing anything.

    Raises:
        DataError: if the metric does not exist, or does not apply to this kind of prediction.
    """
    supported = [metric for metric, (_, kinds) in METRICS.items() if answer_kind in kinds.split()]
    if name not in supported:
        hint = did_you_mean(name, supported)
        raise DataError(f"found metric {name!r}, expected one for {answer_kind}: {', '.join(supported)}.{hint}")


def check_binary_f1(task: Task) -> None:
    """Reject the binary metric `f1` for a task with more than two labels.

    Raises:
        DataError: if the task uses it; the message names the metrics to use instead.
    """
    if "f1" in task.metric_names and task.answer_kind == "single_label" and len(task.labels) > 2:
        raise DataError(
            f"{task.name}: found metric f1 with {len(task.labels)} labels, expected two. Set task.metrics to f1_macro "
            "or f1_micro, which accept any number of labels."
        )


def check_num_rows(task: Task, split: str, num_rows: int) -> None:
    """Check that a split has enough rows for the metrics: a correlation requires two.

    Raises:
        DataError: if the split has fewer rows.
    """
    correlations = [name for name in task.metric_names if name in CORRELATIONS]
    if correlations and num_rows < 2:
        raise DataError(
            f"{task.name}: the metric {correlations[0]} needs at least two rows, found {num_rows} in split {split!r}"
        )


def check_entity_metrics(task: Task) -> None:
    """Reject the metric `seqeval` for tags that do not mark entities, or if it is unclear how they do.

    Raises:
        DataError: if the task uses it; the message names the metric to use instead.
    """
    if "seqeval" in task.metric_names and task.labels:
        try:
            require_readable(read_tag_set(task.labels))
        except DataError as error:
            raise DataError(f"{task.name}: {error}") from error


def compute_metric(name: str, answer_kind: str, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
    """Compute one metric over N predictions and references of one kind (`Head.answer_kind`); return its scores by name.

    Raises:
        DataError: as `check_metric`.
    """
    check_metric(name, answer_kind)
    score_function, _ = METRICS[name]
    if answer_kind in DTYPES:
        predictions, references = (np.asarray(values, DTYPES[answer_kind]) for values in (predictions, references))
    value = score_function(predictions, references, **options)
    return value if isinstance(value, dict) else {name: float(value)}


def compute_metrics(
    names: Iterable[str],
    answer_kind: str,
    predictions: Any,
    references: Any,
    pos_label: int = 1,
    labels: Sequence[str] | None = None,
) -> dict[str, float]:
    """Compute metrics by name over N predictions and references.

    Args:
        pos_label: ID of the positive label, for `f1`.
        labels: all labels of the model, for `seqeval`; None: the labels that occur.
    """
    scores: dict[str, float] = {}
    for name in names:
        options = {"pos_label": pos_label} if name == "f1" else {"labels": labels} if name == "seqeval" else {}
        scores |= compute_metric(name, answer_kind, predictions, references, **options)
    return scores


def score_names(names: Iterable[str]) -> list[str]:
    """Return the names of the scores that these metrics compute."""
    return [score for name in names for score in SCORE_NAMES.get(name, (name,))]


def task_score(task: Task, scores: Mapping[str, float], best_by: str | None = None) -> float:
    """Return a task's score, as a fraction, for averages over tasks.

    For a task with several metrics, it is the mean of their main scores, as in GLUE; otherwise the primary metric.

    Args:
        scores: scores by name; those for question answering are in percent.
        best_by: name of the score to use instead.
    """
    main_scores = [MAIN_SCORES.get(name, name) for name in task.metrics]
    selected = [best_by] if best_by else main_scores if len(main_scores) > 1 else [task.primary_metric]
    if not task.metrics and not task.labels and task.primary_metric not in scores:
        selected = ["accuracy"]  # the tags in the data turned out not to mark entities
    value = statistics.fmean(scores[name] for name in selected)
    return value / 100 if task.answer_kind == "question_answering" else value
