"""Metrics by name, also as `evaluate.Metric` classes (`evaluate.load` by name requires network access).

scikit-learn and SciPy do most of the arithmetic. A row of `METRICS` says what a metric applies to and needs, and
whether lower is better; code that compares scores uses `is_better_lower`, `selection_score` or `best_value`.

Shapes: N predictions, C classes (or choices).
"""

from __future__ import annotations

import itertools
import operator
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bertcli.errors import DataError, did_you_mean
from bertcli.metrics.calibration import calibration_error
from bertcli.metrics.squad import score_squad, score_squad_v2
from bertcli.tasks.tags import infer_tag_set, read_tag_set, require_readable
from bertcli.tasks.task import MAIN_SCORES, Task

if TYPE_CHECKING:
    import evaluate

ScoreFunction = Callable[..., float | dict[str, float]]
"""(N predictions, or probabilities [N, C]; N references; options) → the score, or several scores by name."""
Requirement = Callable[[np.ndarray, int], str]
"""(N references, ID of the positive label) → what the metric needs and does not find in them; empty if nothing."""


@dataclass(frozen=True)
class Metric:
    """A row of `METRICS`.

    Attributes:
        compute: computes the score, or the scores in `scores`.
        answer_kinds: the kinds of predictions that it applies to (`Head.answer_kind`).
        needs: what is compared with the references: predictions, decoded with the thresholds if there are any, or
            probabilities [N, C] in the order of the label IDs.
        lower_is_better: whether the best score is the lowest.
        options: names of the options of `compute`: `pos_label` if it scores the second of two labels, or `labels`.
        scores: names of the scores, if there are several; otherwise, the score has the name of the metric.
        requirement: returns what the references lack for the score to be defined.
    """

    compute: ScoreFunction
    answer_kinds: tuple[str, ...]
    needs: Literal["predictions", "probabilities"] = "predictions"
    lower_is_better: bool = False
    options: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    requirement: Requirement = lambda references, pos_label: ""


def _averaged(function: str, average: str, **parameters: float) -> ScoreFunction:
    """Return a scikit-learn metric of precision, recall or both; without predictions (or rows) of a label it is 0."""

    def score(predictions: np.ndarray, references: np.ndarray, pos_label: int = 1) -> float:
        from sklearn import metrics

        compute = getattr(metrics, function)
        return compute(references, predictions, average=average, zero_division=0.0, pos_label=pos_label, **parameters)

    return score


def _accuracy(predictions: Any, references: Any) -> float:
    """Return the fraction of correct predictions; for tags (lists of lists), only words with a gold tag count.

    In multi-label tasks, a prediction is correct if all labels of the row are.
    """
    if not isinstance(references, np.ndarray):
        predictions, references = (list(itertools.chain(*rows)) for rows in _tagged(predictions, references))
        return sum(map(operator.eq, predictions, references)) / max(1, len(references))
    is_right = predictions == references
    return float((is_right.all(1) if is_right.ndim == 2 else is_right).mean())


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(references, predictions)


def _correlation(name: str) -> ScoreFunction:
    def score(predictions: np.ndarray, references: np.ndarray) -> float:
        from scipy import stats

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            correlation = getattr(stats, name)(predictions, references).statistic
        # Undefined for constant predictions; score them as 0, like the Matthews correlation.
        return 0.0 if np.isnan(correlation) else correlation

    return score


def _regression(function: str) -> ScoreFunction:
    def score(predictions: np.ndarray, references: np.ndarray) -> float:
        from sklearn import metrics

        return getattr(metrics, function)(references, predictions)

    return score


def _two_numbers(references: np.ndarray, pos_label: int) -> str:
    if len(references) < 2:
        return f"at least two rows, found {len(references)}"
    return "rows with different numbers" if (references == references[0]).all() else ""


def label_indicators(references: np.ndarray, num_labels: int) -> np.ndarray:
    """Return whether each row has each label, from label IDs [N] or multi-hot labels [N, C]. [N, C]"""
    return references > 0 if references.ndim == 2 else references[:, None] == np.arange(num_labels)


def _ranking(function: str, average: str) -> ScoreFunction:
    """Return a scikit-learn metric of how well the probability of a label ranks the rows that have it.

    In a macro average, labels without a defined score are left out: those that no row has and, for ROC-AUC, those that
    every row has.
    """

    def score(probabilities: np.ndarray, references: np.ndarray, pos_label: int = 1) -> float:
        from sklearn import metrics

        compute, is_gold = getattr(metrics, function), label_indicators(references, probabilities.shape[1])
        if average == "binary":
            return compute(is_gold[:, pos_label], probabilities[:, pos_label])
        if average == "micro":
            return compute(is_gold.ravel(), probabilities.ravel())
        defined = np.flatnonzero(_is_rankable(function, is_gold))
        return statistics.fmean(float(compute(is_gold[:, label], probabilities[:, label])) for label in defined)

    return score


def _is_rankable(function: str, is_gold: np.ndarray) -> np.ndarray:
    """Return for which labels [C] a ranking metric is defined, given whether each row has each label [N, C]."""
    return np.asarray(is_gold.any(0) & ~(is_gold.all(0) & (function == "roc_auc_score")))


def _ranking_requirement(function: str, average: str) -> Requirement:
    def find_lack(references: np.ndarray, pos_label: int) -> str:
        is_gold = references > 0 if references.ndim == 2 else references[:, None] == np.unique(references)
        if average == "binary":
            is_gold = (references == pos_label)[:, None]
        elif average == "micro":
            is_gold = is_gold.reshape(-1, 1)
        if _is_rankable(function, is_gold).any():
            return ""
        return "rows with a label and rows without it" if function == "roc_auc_score" else "rows with the label"

    return find_lack


def _log_loss(probabilities: np.ndarray, references: np.ndarray) -> float:
    """Return the mean of -ln(p) of the gold label; in multi-label tasks, of each label's presence or absence."""
    from sklearn.metrics import log_loss

    if references.ndim == 1:
        return log_loss(references, probabilities, labels=np.arange(probabilities.shape[1]))
    is_gold, values = references.ravel() > 0, probabilities.ravel()
    return log_loss(is_gold, np.stack((1 - values, values), axis=1), labels=[False, True])


def _brier(probabilities: np.ndarray, references: np.ndarray) -> float:
    """Return the mean squared difference between the probability of a label and whether the row has it.

    With more than two labels of which each row has one, it is the sum over the labels, from 0 to 2 (Brier 1950).
    """
    return float(row_brier(probabilities, references).mean())


def row_brier(probabilities: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the terms of `brier`, one for each row. [N]"""
    squares = (probabilities - label_indicators(references, probabilities.shape[1])) ** 2
    has_sum = references.ndim == 1 and probabilities.shape[1] > 2
    return np.asarray(squares.sum(1) if has_sum else squares.mean(1))


def _mean_reciprocal_rank(probabilities: np.ndarray, references: np.ndarray) -> float:
    """Return the mean of 1 / rank of the gold choice; among equal probabilities, it ranks last."""
    from sklearn.metrics import label_ranking_average_precision_score

    return label_ranking_average_precision_score(label_indicators(references, probabilities.shape[1]), probabilities)


def _seqeval(
    predictions: list[list[str]], references: list[list[str | None]], labels: Sequence[str] | None = None
) -> dict[str, float]:
    """Return entity-level precision, recall and F1 as in conlleval and seqeval, and token-level accuracy.

    Args:
        predictions: N rows of tags.
        references: N rows of gold tags; None for words without one, which are ignored.
        labels: all tags, from which the tagging scheme is inferred (see `bertcli.tasks.tags`); if None, it is inferred
            from the tags that occur.

    Raises:
        DataError: as `count_entities`.
    """
    right, predicted, gold = count_entities(predictions, references, labels).sum(0).tolist()
    return {
        "precision": right / max(1, predicted),
        "recall": right / max(1, gold),
        "f1": 2 * right / max(1, predicted + gold),
        "accuracy": _accuracy(predictions, references),
    }


def count_entities(
    predictions: list[list[str]], references: list[list[str | None]], labels: Sequence[str] | None = None
) -> np.ndarray:
    """Return the numbers of right, predicted and gold entities of each row, from which F1 is computed. [N, 3]

    Args: as for the metric `seqeval`.

    Raises:
        DataError: if the tags follow no known tagging scheme, or the scheme is ambiguous.
    """
    tag_set = read_tag_set(tuple(labels)) if labels else infer_tag_set([*predictions, *references])
    require_readable(tag_set)
    rows = zip(*_tagged(predictions, references), strict=True)
    entities = [tuple({*tag_set.entities(tags)} for tags in pair) for pair in rows]
    counts = [(len(predicted & gold), len(predicted), len(gold)) for predicted, gold in entities]
    return np.array(counts).reshape(-1, 3)


def count_tags(predictions: list[list[str]], references: list[list[str | None]]) -> np.ndarray:
    """Return the numbers of right predictions and of words with a gold tag of each row. [N, 2]"""
    rows = zip(*_tagged(predictions, references), strict=True)
    return np.array([(sum(map(operator.eq, predicted, gold)), len(gold)) for predicted, gold in rows])


def _tagged(predictions: Any, references: Any) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rows of predicted and gold tags without the words that lack a gold tag (None)."""
    if not any(None in row for row in references):
        return predictions, references
    kept = [[index for index, tag in enumerate(row) if tag is not None] for row in references]
    return tuple(  # type: ignore[return-value]
        [[row[index] for index in indices] for row, indices in zip(rows, kept, strict=True)]
        for rows in (predictions, references)
    )


LABELS = ("single_label", "multi_label")
F_BETAS = {"f1": 1.0, "f0.5": 0.5, "f2": 2.0}
AVERAGES = ("macro", "micro", "weighted")


def _label_metrics(name: str, function: str, **parameters: float) -> dict[str, Metric]:
    """Return the rows of a metric of the second of two labels, and of its averages over any number of labels."""
    binary = Metric(_averaged(function, "binary", **parameters), ("single_label",), options=("pos_label",))
    return {name: binary} | {
        f"{name}_{average}": Metric(_averaged(function, average, **parameters), LABELS) for average in AVERAGES
    }


def _ranking_metrics(name: str, function: str) -> dict[str, Metric]:
    def row(average: str, answer_kinds: tuple[str, ...], options: tuple[str, ...] = ()) -> Metric:
        requirement = _ranking_requirement(function, average)
        return Metric(
            _ranking(function, average), answer_kinds, "probabilities", options=options, requirement=requirement
        )

    return {
        name: row("binary", ("single_label",), ("pos_label",)),
        f"{name}_macro": row("macro", LABELS),  # one-vs-rest if each row has one label
        f"{name}_micro": row("micro", ("multi_label",)),
    }


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, ("single_label", "multiple_choice", "token_classification")),
    **{
        key: row
        for name, beta in F_BETAS.items()
        for key, row in _label_metrics(name, "fbeta_score", beta=beta).items()
    },
    **_label_metrics("precision", "precision_score"),
    **_label_metrics("recall", "recall_score"),
    "matthews": Metric(_matthews, ("single_label",)),
    "exact_match": Metric(_accuracy, ("multi_label",)),
    **_ranking_metrics("roc_auc", "roc_auc_score"),
    **_ranking_metrics("average_precision", "average_precision_score"),
    "log_loss": Metric(_log_loss, (*LABELS, "multiple_choice"), "probabilities", lower_is_better=True),
    "brier": Metric(_brier, (*LABELS, "multiple_choice"), "probabilities", lower_is_better=True),
    "calibration_error": Metric(
        calibration_error, ("single_label", "multiple_choice"), "probabilities", lower_is_better=True
    ),
    "mrr": Metric(_mean_reciprocal_rank, ("multiple_choice",), "probabilities"),
    "pearson": Metric(_correlation("pearsonr"), ("regression",), requirement=_two_numbers),
    "spearman": Metric(_correlation("spearmanr"), ("regression",), requirement=_two_numbers),
    "mse": Metric(_regression("mean_squared_error"), ("regression",), lower_is_better=True),
    "rmse": Metric(_regression("root_mean_squared_error"), ("regression",), lower_is_better=True),
    "mae": Metric(_regression("mean_absolute_error"), ("regression",), lower_is_better=True),
    "r2": Metric(_regression("r2_score"), ("regression",), requirement=_two_numbers),
    "seqeval": Metric(
        _seqeval, ("token_classification",), options=("labels",), scores=("precision", "recall", "f1", "accuracy")
    ),
    "squad": Metric(score_squad, ("question_answering",), scores=("exact_match", "f1")),
    "squad_v2": Metric(score_squad_v2, ("question_answering",), scores=("exact", "f1", "best_exact", "best_f1")),
}

DTYPES = {  # of arrays of predictions and references
    "single_label": np.int64,
    "multiple_choice": np.int64,
    "multi_label": np.float32,
    "regression": np.float64,
}
LOSSES = ("loss", "perplexity")  # ends of the names of scores that are not metrics, and for which lower is better


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
            if METRICS[self._score_name].needs == "probabilities":
                prediction = List(Value("float64"))
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
    supported = [metric for metric, row in METRICS.items() if answer_kind in row.answer_kinds]
    if name not in supported:
        hint = did_you_mean(name, supported)
        raise DataError(f"found metric {name!r}, expected one for {answer_kind}: {', '.join(supported)}.{hint}")


def check_metrics(task: Task) -> None:
    """Check that the metrics of a task apply to its kind of prediction and to its labels, as far as they are known.

    Raises:
        DataError: if a metric does not exist or does not apply, such as `f1` with more than two labels, or `seqeval`
            with tags that do not mark entities; the message names the metrics to use instead.
    """
    for name in task.metric_names:
        check_metric(name, task.answer_kind)
        if "pos_label" in METRICS[name].options and len(task.labels) > 2:
            averages = [average for average in METRICS if average.startswith(f"{name}_")]
            names = " or ".join(average for average in averages if "single_label" in METRICS[average].answer_kinds)
            raise DataError(
                f"{task.name}: found metric {name} with {len(task.labels)} labels, expected two. Set task.metrics to "
                f"{names}, for any number of labels."
            )
        if name == "seqeval" and task.labels:
            try:
                require_readable(read_tag_set(task.labels))
            except DataError as error:
                raise DataError(f"{task.name}: {error}") from error


def check_references(task: Task, split: str, references: Any, pos_label: int = 1) -> None:
    """Check that the scores of a split are defined: ROC-AUC needs two classes, and a correlation two rows.

    Args:
        references: the N gold values of the split.
        pos_label: ID of the positive label.

    Raises:
        DataError: if a metric of the task is undefined for them.
    """
    for name in task.metric_names:
        if lack := METRICS[name].requirement(references, pos_label):
            raise DataError(
                f"{task.name}: the metric {name} needs {lack} in split {split!r}; use other rows, or leave it out of "
                "task.metrics"
            )


def compute_metric(name: str, answer_kind: str, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
    """Compute one metric over N predictions and references of one kind (`Head.answer_kind`); return its scores by name.

    Args:
        predictions: what the metric `needs`: predictions, or probabilities [N, C].

    Raises:
        DataError: as `check_metric`, or if the score is undefined for these references.
    """
    check_metric(name, answer_kind)
    metric = METRICS[name]
    if answer_kind in DTYPES:
        dtype = DTYPES[answer_kind]
        references = np.asarray(references, dtype)
        predictions = np.asarray(predictions, np.float64 if metric.needs == "probabilities" else dtype)
        if lack := metric.requirement(references, options.get("pos_label", 1)):
            raise DataError(f"the metric {name} needs {lack}")
    value = metric.compute(predictions, references, **options)
    return value if isinstance(value, dict) else {name: float(value)}


def compute_metrics(
    names: Iterable[str],
    answer_kind: str,
    predictions: Any,
    references: Any,
    pos_label: int = 1,
    labels: Sequence[str] | None = None,
    probabilities: np.ndarray | None = None,
) -> dict[str, float]:
    """Compute metrics by name over N predictions and references.

    Args:
        pos_label: ID of the positive label, for metrics of the second of two labels.
        labels: all labels of the model, for `seqeval`; None: the labels that occur.
        probabilities: [N, C]; required if `needs_probabilities`.
    """
    options = {"pos_label": pos_label, "labels": labels}
    scores: dict[str, float] = {}
    for name in names:
        check_metric(name, answer_kind)
        metric = METRICS[name]
        values = probabilities if metric.needs == "probabilities" else predictions
        scores |= compute_metric(
            name, answer_kind, values, references, **{option: options[option] for option in metric.options}
        )
    return scores


def needs_probabilities(names: Iterable[str]) -> bool:
    """Return whether one of these metrics is computed from probabilities."""
    return any(METRICS[name].needs == "probabilities" for name in names)


def score_names(names: Iterable[str]) -> list[str]:
    """Return the names of the scores that these metrics compute."""
    return [score for name in names for score in METRICS[name].scores or (name,)]


def is_better_lower(score: str) -> bool:
    """Return whether lower values of a score are better; in a multitask run, its name begins with that of a task."""
    name = score.rpartition("/")[2]
    return METRICS[name].lower_is_better if name in METRICS else name.endswith(LOSSES)


def selection_score(score: str, value: float) -> float:
    """Return the value of a score, negated if lower is better, so that the highest one is the best."""
    return -value if is_better_lower(score) else value


def best_value(score: str, values: Iterable[float]) -> float:
    """Return the best of several values of a score: the highest, or the lowest if lower is better."""
    return (min if is_better_lower(score) else max)(values)


def averaged_scores(task: Task, best_by: str | None = None) -> list[str]:
    """Return the names of the scores whose mean is the task's score in averages over tasks.

    For a task with several metrics, these are their main scores, as in GLUE; otherwise the primary metric. Scores for
    which lower is better are left out, so that there may be none.

    Args:
        best_by: name of the score to use instead.
    """
    main_scores = [MAIN_SCORES.get(name, name) for name in task.metrics]
    selected = [best_by] if best_by else main_scores if len(main_scores) > 1 else [task.primary_metric]
    return [name for name in selected if not is_better_lower(name)]


def task_score(task: Task, scores: Mapping[str, float], best_by: str | None = None) -> float:
    """Return a task's score, as a fraction, for averages over tasks: the mean of its `averaged_scores`.

    Args:
        scores: scores by name; those for question answering are in percent.
        best_by: name of the score to use instead.
    """
    selected = averaged_scores(task, best_by)
    if not task.metrics and not task.labels and task.primary_metric not in scores:
        selected = ["accuracy"]  # the tags in the data turned out not to mark entities
    value = statistics.fmean(scores[name] for name in selected)
    return value / 100 if task.answer_kind == "question_answering" else value
