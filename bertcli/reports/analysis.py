"""What a run's answers tell: confusion, scores of each label, calibration, mistakes. Pure functions of plain rows.

A row is a line of `predictions/`: `gold`, `predicted` and what its kind of answer knows beside them. N rows, C labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertcli.reports.charts import Chart, Series

Rows = Sequence[dict[str, Any]]
NOTHING = "–"  # where there is no entity
MOST_LABELS = 15  # of a confusion matrix
MOST_TABLE_ROWS = 40
MOST_WORST = 20
NUM_BINS = 10


@dataclass(frozen=True)
class Confusion:
    """How often each right label (row) was answered as which (column)."""

    labels: list[str]
    counts: list[list[int]]
    num_left_out: int  # labels that are not shown

    def shade(self, row: int, column: int) -> int:
        """The share of the row's cases in tenths, rounded up."""
        total = sum(self.counts[row])
        return math.ceil(10 * self.counts[row][column] / total) if total else 0


def confusion(pairs: Iterable[tuple[str, str]]) -> Confusion:
    """The confusion matrix of (right, predicted) pairs; of many labels those with the most mistakes."""
    counts = Counter(pairs)
    labels = sorted({label for pair in counts for label in pair}, key=lambda label: (label == NOTHING, label))
    if len(labels) > MOST_LABELS:
        wrong: Counter[str] = Counter()
        for (gold, predicted), count in counts.items():
            if gold != predicted:
                wrong.update({gold: count, predicted: count})
        kept = {label for label, _ in wrong.most_common(MOST_LABELS)}
        shown = [label for label in labels if label in kept] or labels[:MOST_LABELS]
    else:
        shown = labels
    table = [[counts[row, column] for column in shown] for row in shown]
    return Confusion(shown, table, len(labels) - len(shown))


@dataclass(frozen=True)
class LabelScores:
    """How well one label is found."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def scores_by_label(gold: Sequence[set[Any]], predicted: Sequence[set[Any]]) -> list[LabelScores]:
    """Precision, recall and F1 of each label, from the sets of things (label, or a tuple beginning with it) of N rows.

    The label with the lowest F1 comes first.
    """
    right: Counter[str] = Counter()
    support: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for ours, theirs in zip(gold, predicted, strict=True):
        support.update(map(_label, ours))
        found.update(map(_label, theirs))
        right.update(map(_label, ours & theirs))
    scores = []
    for label in support | found:
        precision = right[label] / found[label] if found[label] else 0.0
        recall = right[label] / support[label] if support[label] else 0.0
        f1 = 2 * right[label] / (support[label] + found[label])
        scores.append(LabelScores(label, precision, recall, f1, support[label]))
    return sorted(scores, key=lambda one: (one.f1, one.label))


def _label(thing: Any) -> str:
    return thing if isinstance(thing, str) else thing[0]


def things_of(answer: Any) -> set[Any]:
    """What an answer claims: its label, its labels, or the entities (kind, first word, last word) of its tags."""
    return {answer} if isinstance(answer, str) else set(answer)


def entities_of(tags: list[str]) -> set[tuple[str, int, int]]:
    """The entities (kind, first word, last word) of a row's tags; tags that mark no spans are entities of a word."""
    if any(tag != "O" and tag[:2] not in ("B-", "I-", "E-", "S-") for tag in tags):
        return {(tag, at, at) for at, tag in enumerate(tags)}
    from seqeval.metrics.sequence_labeling import get_entities

    return set(get_entities(tags))


def entity_pairs(rows: Rows) -> list[tuple[str, str]]:
    """(right kind, predicted kind) of each span of words that is, or was taken for, an entity."""
    pairs = []
    for row in rows:
        gold, found = (
            {(first, last): kind for kind, first, last in entities_of(row[side])} for side in ("gold", "predicted")
        )
        pairs += [(gold.get(span, NOTHING), found.get(span, NOTHING)) for span in gold | found]
    return pairs


@dataclass(frozen=True)
class Calibration:
    """Whether answers are right as often as their probabilities say."""

    shares_right: list[float | None]  # of each bin of probabilities, from 0 to 1; None: it is empty
    expected_error: float

    @property
    def chart(self) -> Chart:
        """The reliability diagram."""
        width = 1 / len(self.shares_right)
        bars = [((at + 0.5) * width, share) for at, share in enumerate(self.shares_right) if share is not None]
        series = Series("share right", bars, "bars", bar_width=width)
        axes = "probability of the answer", "share right"
        return Chart("calibration", "Calibration", *axes, [series], diagonal=True, limits=(0.0, 1.0))


def calibration(confidences: Sequence[float], right: Sequence[bool], num_bins: int = NUM_BINS) -> Calibration:
    """Reliability by equal bins (low, high], and the expected calibration error: the mean distance, over the N answers,
    between the mean probability of their bin and its share of right ones.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599.
    """
    sure, hits = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    bins = np.clip(np.ceil(sure * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums, hit_sums = (np.bincount(bins, weights=values, minlength=num_bins) for values in (sure, hits))
    shares = [float(hit) / int(count) if count else None for hit, count in zip(hit_sums, counts, strict=True)]
    return Calibration(shares, float(np.abs(sums - hit_sums).sum() / len(sure)))


def temperature(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """The number that the logits have to be divided by for the right labels to be likeliest as a whole.

    Above 1 the model is too sure of itself. Args: [N, C] shares that add up to 1, [N] numbers of the right labels.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits = np.log(np.clip(probabilities, 1e-30, None))
    rows = np.arange(len(gold))

    def cost(log_temperature: float) -> float:
        return -float(log_softmax(logits / math.exp(log_temperature), axis=-1)[rows, gold].mean())

    return math.exp(minimize_scalar(cost, bounds=(-3.0, 3.0), method="bounded").x)


def temperature_of(rows: Rows) -> float | None:
    """The temperature of rows that hold the probability of every label; None if some do not."""
    labels = sorted(rows[0]["probabilities"])
    if any(row["gold"] not in labels or len(row["probabilities"]) != len(labels) for row in rows):
        return None
    if any(row["probabilities"].keys() != rows[0]["probabilities"].keys() for row in rows):
        return None
    place = {label: at for at, label in enumerate(labels)}
    table = np.asarray([[row["probabilities"][label] for label in labels] for row in rows])
    return temperature(table / table.sum(1, keepdims=True), np.asarray([place[row["gold"]] for row in rows]))


def worst(rows: Rows) -> list[dict[str, Any]]:
    """The rows whose answers are farthest from right, worst first; a number is never quite right."""
    wrong = [row for row in rows if not row.get("right", False)]
    return sorted(wrong, key=lambda row: (-row["loss"], -row.get("confidence", 0.0), row["row"]))[:MOST_WORST]
