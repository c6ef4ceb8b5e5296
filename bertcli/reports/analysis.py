"""Error analysis of predictions: confusion matrix, per-label scores, calibration, worst mistakes.

The functions are pure. A row is a line of a file in `predictions/`: `gold`, `predicted`, and keys that depend on the
kind of prediction.

Shapes: N rows, C labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertcli.metrics.calibration import NUM_BINS, confidence_bins, fit_temperature
from bertcli.reports.charts import Chart, Series
from bertcli.tasks.tags import TagSet, infer_tag_set

Rows = Sequence[dict[str, Any]]
NO_ENTITY = "–"
MAX_LABELS = 15  # in a confusion matrix
MAX_TABLE_ROWS = 40
MAX_MISTAKES = 20


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts by gold label (row) and predicted label (column)."""

    labels: list[str]
    counts: list[list[int]]
    num_omitted: int  # number of labels not shown

    def shade(self, row: int, column: int) -> int:
        """Return a cell's share of its row in tenths, rounded up."""
        total = sum(self.counts[row])
        return math.ceil(10 * self.counts[row][column] / total) if total else 0


def confusion_matrix(pairs: Iterable[tuple[str, str]]) -> ConfusionMatrix:
    """Return the confusion matrix of (gold, predicted) pairs; of many labels, only those with the most errors."""
    counts = Counter(pairs)
    labels = sorted({label for pair in counts for label in pair}, key=lambda label: (label == NO_ENTITY, label))
    if len(labels) > MAX_LABELS:
        num_errors: Counter[str] = Counter()
        for (gold, predicted), count in counts.items():
            if gold != predicted:
                num_errors.update({gold: count, predicted: count})
        kept = {label for label, _ in num_errors.most_common(MAX_LABELS)}
        shown = [label for label in labels if label in kept] or labels[:MAX_LABELS]
    else:
        shown = labels
    matrix = [[counts[row, column] for column in shown] for row in shown]
    return ConfusionMatrix(shown, matrix, len(labels) - len(shown))


@dataclass(frozen=True)
class LabelScores:
    """The precision, recall, F1 and support of one label."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def per_label_scores(gold: Sequence[set[Any]], predicted: Sequence[set[Any]]) -> list[LabelScores]:
    """Return the precision, recall and F1 of each label, lowest F1 first.

    Args:
        gold: N sets of labels, or of entities (tuples that start with their type).
        predicted: N sets of predicted labels or entities.
    """
    num_correct: Counter[str] = Counter()
    num_gold: Counter[str] = Counter()
    num_predicted: Counter[str] = Counter()
    for gold_items, predicted_items in zip(gold, predicted, strict=True):
        num_gold.update(map(_item_label, gold_items))
        num_predicted.update(map(_item_label, predicted_items))
        num_correct.update(map(_item_label, gold_items & predicted_items))
    scores = []
    for label in num_gold | num_predicted:
        precision = num_correct[label] / num_predicted[label] if num_predicted[label] else 0.0
        recall = num_correct[label] / num_gold[label] if num_gold[label] else 0.0
        f1 = 2 * num_correct[label] / (num_gold[label] + num_predicted[label])
        scores.append(LabelScores(label, precision, recall, f1, num_gold[label]))
    return sorted(scores, key=lambda score: (score.f1, score.label))


def _item_label(item: Any) -> str:
    return item if isinstance(item, str) else item[0]


def to_label_set(labels: str | list[str]) -> set[str]:
    """Return a label, or a list of labels, as a set."""
    return {labels} if isinstance(labels, str) else set(labels)


def extract_entities(tags: Sequence[str | None], tag_set: TagSet | None = None) -> set[tuple[str, int, int]]:
    """Return the entities (type, first word, last word) in a row of tags.

    Tags that do not mark entities, such as parts of speech, count as one entity per word.

    Args:
        tags: tags of the words; None for words without a tag.
        tag_set: how the tags mark entities; None: infer it from this row.
    """
    tag_set = tag_set or infer_tag_set([tags])
    if not tag_set.marks_entities:
        return {(tag, index, index) for index, tag in enumerate(tags) if tag is not None}
    return set(tag_set.entities(["" if tag is None else tag for tag in tags]))


def infer_row_tags(rows: Rows) -> TagSet:
    """Infer the tag set from the tags in the rows, for predictions whose model is unknown."""
    return infer_tag_set([tags for row in rows for tags in (row["gold"], row["predicted"])])


def with_gold_only(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row without the words that have no gold tag (None), which are not evaluated."""
    kept = [index for index, tag in enumerate(row["gold"]) if tag is not None]
    if len(kept) == len(row["gold"]):
        return row
    return row | {side: [row[side][index] for index in kept] for side in ("gold", "predicted")}


def entity_pairs(rows: Rows, tag_set: TagSet | None = None) -> list[tuple[str, str]]:
    """Return the pair (gold type, predicted type) of each gold or predicted entity span.

    Args:
        tag_set: how the tags mark entities; None: infer it from the rows.
    """
    tag_set = tag_set or infer_row_tags(rows)
    pairs = []
    for row in map(with_gold_only, rows):
        gold, predicted = (
            {(first, last): kind for kind, first, last in extract_entities(row[side], tag_set)}
            for side in ("gold", "predicted")
        )
        pairs += [(gold.get(span, NO_ENTITY), predicted.get(span, NO_ENTITY)) for span in gold | predicted]
    return pairs


@dataclass(frozen=True)
class Calibration:
    """The reliability of the predicted probabilities."""

    accuracies: list[float | None]  # of each confidence bin, from 0 to 1; None for an empty bin
    expected_calibration_error: float

    @property
    def chart(self) -> Chart:
        """The reliability diagram."""
        width = 1 / len(self.accuracies)
        bars = [((index + 0.5) * width, value) for index, value in enumerate(self.accuracies) if value is not None]
        series = Series("accuracy", bars, "bars", bar_width=width)
        axes = "confidence", "accuracy"
        return Chart("calibration", "Calibration", *axes, [series], diagonal=True, limits=(0.0, 1.0))


def measure_calibration(
    confidences: Sequence[float], is_correct: Sequence[bool], num_bins: int = NUM_BINS
) -> Calibration:
    """Measure the accuracy in equal-width confidence bins (low, high], and the expected calibration error.

    The error is the mean, over the N predictions, of |accuracy - mean confidence| of their bin
    (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    """
    confidence, correct = np.asarray(confidences, dtype=float), np.asarray(is_correct, dtype=float)
    bins = confidence_bins(confidence, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    sums, num_correct = (np.bincount(bins, weights=values, minlength=num_bins) for values in (confidence, correct))
    accuracies = [float(hits) / int(count) if count else None for hits, count in zip(num_correct, counts, strict=True)]
    return Calibration(accuracies, float(np.abs(sums - num_correct).sum() / len(confidence)))


def fit_row_temperature(rows: Rows) -> float | None:
    """Return the temperature fitted to rows with the probability of every label; None if some rows lack one."""
    labels = sorted(rows[0]["probabilities"])
    if any(row["gold"] not in labels or len(row["probabilities"]) != len(labels) for row in rows):
        return None
    if any(row["probabilities"].keys() != rows[0]["probabilities"].keys() for row in rows):
        return None
    label_ids = {label: index for index, label in enumerate(labels)}
    probabilities = np.asarray([[row["probabilities"][label] for label in labels] for row in rows])
    gold = np.asarray([label_ids[row["gold"]] for row in rows])
    return fit_temperature(probabilities / probabilities.sum(1, keepdims=True), gold)


def worst_mistakes(rows: Rows) -> list[dict[str, Any]]:
    """Return the wrong predictions with the highest loss, highest first; all regression rows count as wrong."""
    wrong = [row for row in rows if not row.get("right", False)]
    return sorted(wrong, key=lambda row: (-row["loss"], -row.get("confidence", 0.0), row["row"]))[:MAX_MISTAKES]
