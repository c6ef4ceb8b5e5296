"""Metrics by name, and the scores of answers.

A row of `METRICS` says how a metric is computed, what it applies to and needs, and whether lower is better; code that
compares scores uses `is_better_lower`, `selection_score` or `best_value`.

Shapes: N rows, B weightings, C classes (or choices).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

import numpy as np

from bertcli.errors import DataError, did_you_mean
from bertcli.metrics import weighted_scores
from bertcli.metrics.answers import Answers, metric_names, num_rows
from bertcli.metrics.squad import ANSWERABLE, score_squad, score_squad_v2
from bertcli.metrics.weighted_scores import WeightedScore, entity_score, f_score, mean, question_mean, ranking
from bertcli.tasks.tags import read_tag_set, require_readable
from bertcli.tasks.task import MAIN_SCORES, Task

Requirement = Callable[[np.ndarray, int], str]
"""(N references, ID of the positive label) → what the metric needs and does not find in them; empty if nothing."""


@dataclass(frozen=True)
class Metric:
    """A row of `METRICS`.

    Attributes:
        answer_kinds: the kinds of predictions that it applies to (`Head.answer_kind`).
        scores: functions of weighted rows, by the name of the score.
        needs: what is compared with the references: predictions, decoded with the thresholds if there are any, or
            probabilities [N, C] in the order of the label IDs.
        lower_is_better: whether the best score is the lowest.
        is_binary: whether it scores the second of two labels.
        requirement: returns what the references lack for the score to be defined.
        compute: computes the scores of a split if they are not just those of rows that all have the same weight.
        names: the scores that every split has, if not all of `scores`.
    """

    answer_kinds: tuple[str, ...]
    scores: Mapping[str, WeightedScore]
    needs: Literal["predictions", "probabilities"] = "predictions"
    lower_is_better: bool = False
    is_binary: bool = False
    requirement: Requirement = lambda references, pos_label: ""
    compute: Callable[[Answers], dict[str, float]] | None = None
    names: tuple[str, ...] = ()


def _two_numbers(references: np.ndarray, pos_label: int) -> str:
    if len(references) < 2:
        return f"at least two rows, found {len(references)}"
    return "rows with different numbers" if (references == references[0]).all() else ""


def _ranking_requirement(name: str, average: str) -> Requirement:
    def find_lack(references: np.ndarray, pos_label: int) -> str:
        is_gold = references > 0 if references.ndim == 2 else references[:, None] == np.unique(references)
        if average == "binary":
            is_gold = (references == pos_label)[:, None]
        elif average == "micro":
            is_gold = is_gold.reshape(-1, 1)
        if name == "roc_auc":
            return "" if (is_gold.any(0) & ~is_gold.all(0)).any() else "rows with a label and rows without it"
        return "" if is_gold.any() else "rows with the label"

    return find_lack


LABELS = ("single_label", "multi_label")
F_BETAS = {"f1": 1.0, "f0.5": 0.5, "f2": 2.0}
PREDICTED_SHARES = {**{name: 1 / (1 + beta**2) for name, beta in F_BETAS.items()}, "precision": 1.0, "recall": 0.0}
AVERAGES = ("macro", "micro", "weighted")
RANKING = {"roc_auc": weighted_scores.roc_auc, "average_precision": weighted_scores.average_precision}


def _label_metrics(name: str, predicted_share: float) -> dict[str, Metric]:
    """Return the rows of a metric of the second of two labels, and of its averages over any number of labels."""
    binary = Metric(("single_label",), {name: f_score(predicted_share, "binary")}, is_binary=True)
    return {name: binary} | {
        key: Metric(LABELS, {key: f_score(predicted_share, average)})
        for key, average in ((f"{name}_{average}", average) for average in AVERAGES)
    }


def _ranking_metrics(name: str) -> dict[str, Metric]:
    def row(key: str, average: str, answer_kinds: tuple[str, ...]) -> dict[str, Metric]:
        scores, requirement = {key: ranking(RANKING[name], average)}, _ranking_requirement(name, average)
        is_binary = average == "binary"
        return {key: Metric(answer_kinds, scores, "probabilities", is_binary=is_binary, requirement=requirement)}

    return {
        **row(name, "binary", ("single_label",)),
        **row(f"{name}_macro", "macro", LABELS),  # one-vs-rest if each row has one label
        **row(f"{name}_micro", "micro", ("multi_label",)),
    }


def _probability_metric(name: str, score: WeightedScore, answer_kinds: tuple[str, ...]) -> dict[str, Metric]:
    return {name: Metric(answer_kinds, {name: score}, "probabilities", lower_is_better=name != "mrr")}


def _number_metric(name: str, score: WeightedScore, requirement: Requirement | None = None) -> dict[str, Metric]:
    """Return the row of an error, or of a score that has a requirement and is better if it is higher."""
    if requirement is None:
        return {name: Metric(("regression",), {name: score}, lower_is_better=True)}
    return {name: Metric(("regression",), {name: score}, requirement=requirement)}


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        ("single_label", "multiple_choice", "token_classification"), {"accuracy": weighted_scores.accuracy}
    ),
    **{key: row for name, share in PREDICTED_SHARES.items() for key, row in _label_metrics(name, share).items()},
    "matthews": Metric(("single_label",), {"matthews": weighted_scores.matthews}),
    "exact_match": Metric(("multi_label",), {"exact_match": weighted_scores.accuracy}),
    **{key: row for name in RANKING for key, row in _ranking_metrics(name).items()},
    **_probability_metric("log_loss", mean(weighted_scores.row_log_loss), (*LABELS, "multiple_choice")),
    **_probability_metric("brier", mean(weighted_scores.row_brier), (*LABELS, "multiple_choice")),
    **_probability_metric("calibration_error", weighted_scores.calibration_error, ("single_label", "multiple_choice")),
    **_probability_metric("mrr", mean(weighted_scores.reciprocal_ranks), ("multiple_choice",)),
    **_number_metric("pearson", weighted_scores.pearson, _two_numbers),
    **_number_metric("spearman", weighted_scores.spearman, _two_numbers),
    **_number_metric("mse", mean(weighted_scores.squared_errors)),
    **_number_metric("rmse", weighted_scores.root_mean_squared_error),
    **_number_metric("mae", mean(weighted_scores.absolute_errors)),
    **_number_metric("r2", weighted_scores.r2, _two_numbers),
    "seqeval": Metric(
        ("token_classification",),
        {name: entity_score(PREDICTED_SHARES[name]) for name in ("precision", "recall", "f1")}
        | {"accuracy": weighted_scores.accuracy},
    ),
    "squad": Metric(
        ("question_answering",),
        {name: mean(itemgetter(name), 100) for name in ("exact_match", "f1")},
        compute=score_squad,
    ),
    "squad_v2": Metric(
        ("question_answering",),
        {name: mean(itemgetter(name), 100) for name in ("exact", "f1")}
        | {
            f"{group}_{name}": question_mean(name, has_answer)
            for group, has_answer in ANSWERABLE.items()
            for name in ("exact", "f1")
        },
        compute=score_squad_v2,
        names=("exact", "f1", "best_exact", "best_f1"),
    ),
}
LOSSES = ("loss", "perplexity")  # ends of the names of scores that are not metrics, and for which lower is better


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
        if METRICS[name].is_binary and len(task.labels) > 2:
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


def compute_scores(answers: Answers) -> dict[str, float]:
    """Return the scores of the answers' metrics, by name.

    Raises:
        DataError: if a score is undefined for the gold values.
    """
    scores: dict[str, float] = {}
    gold, pos_label, ones = answers.get("gold"), int(answers.get("pos_label", 1)), np.ones((1, num_rows(answers)))
    for name in metric_names(answers):
        metric = METRICS[name]
        if gold is not None and (lack := metric.requirement(gold, pos_label)):
            raise DataError(f"the metric {name} needs {lack}")
        if metric.compute is None:
            scores |= {score: function(answers, ones).item() for score, function in metric.scores.items()}
        else:
            scores |= metric.compute(answers)
    return scores


def score_functions(answers: Answers) -> dict[str, WeightedScore]:
    """Return the functions of weighted rows that compute the scores of the answers' metrics, by the name of the score.

    Scores that are tuned on the rows themselves, such as `best_f1` of SQuAD 2.0, are left out, as are those of groups
    that have no rows, such as `NoAns_f1`.
    """
    functions = {score: function for name in metric_names(answers) for score, function in METRICS[name].scores.items()}
    for group, has_answer in ANSWERABLE.items():
        if "has_answer" in answers and has_answer not in answers["has_answer"]:
            functions = {score: function for score, function in functions.items() if not score.startswith(group)}
    return functions


def num_columns(answers: Answers) -> int:
    """Return how many values of a row are scored at once: C if one of the metrics ranks all labels together, else 1."""
    pools = {f"{name}_micro" for name in RANKING} & {*metric_names(answers)}
    return answers["probabilities"].shape[1] if pools else 1


def needs_probabilities(names: Iterable[str]) -> bool:
    """Return whether one of these metrics is computed from probabilities."""
    return any(METRICS[name].needs == "probabilities" for name in names)


def score_names(names: Iterable[str]) -> list[str]:
    """Return the names of the scores that these metrics compute."""
    return [score for name in names for score in METRICS[name].names or METRICS[name].scores]


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
