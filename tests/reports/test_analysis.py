"""Error analysis against direct computations: calibration, temperature, per-label scores, confusion matrix, axes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import precision_recall_fscore_support

from bertcli.metrics.calibration import fit_temperature
from bertcli.reports.analysis import (
    NO_ENTITY,
    confusion_matrix,
    entity_pairs,
    extract_entities,
    fit_row_temperature,
    infer_row_tags,
    measure_calibration,
    per_label_scores,
    worst_mistakes,
)
from bertcli.reports.charts import (
    HEIGHT,
    WIDTH,
    Chart,
    Series,
    curve_points,
    draw,
    length_histogram,
    nice_ticks,
    tick_label,
)
from bertcli.reports.excerpts import build_excerpts


def test_expected_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    random = np.random.default_rng(0)
    confidence, is_correct = random.random(500), random.random(500) < 0.6
    expected_error, accuracies = 0.0, []
    for low in range(10):
        in_bin = (confidence > low / 10) & (confidence <= (low + 1) / 10)
        expected_error += in_bin.sum() / 500 * abs(is_correct[in_bin].mean() - confidence[in_bin].mean())
        accuracies.append(is_correct[in_bin].mean())
    calibration = measure_calibration(confidence.tolist(), is_correct.tolist())
    assert calibration.expected_calibration_error == pytest.approx(expected_error)
    assert calibration.accuracies == pytest.approx(accuracies)


def test_calibration_error_is_zero_for_certain_and_correct_predictions() -> None:
    calibration = measure_calibration([1.0, 1.0, 0.0], [True, True, False])
    assert calibration.expected_calibration_error == 0
    assert (calibration.accuracies[0], calibration.accuracies[5], calibration.accuracies[-1]) == (0.0, None, 1.0)


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 3.0])
def test_temperature_undoes_overconfidence(overconfidence: float) -> None:
    random = np.random.default_rng(0)
    logits = 2 * random.standard_normal((4000, 3))
    gold = np.asarray([random.choice(3, p=row) for row in softmax(logits, axis=-1)])
    temperature = fit_temperature(softmax(logits * overconfidence, axis=-1), gold)
    losses = {
        value: -np.log(softmax(logits * overconfidence / value, axis=-1)[np.arange(4000), gold]).mean()
        for value in (*np.geomspace(0.1, 10, 200), temperature)
    }
    assert min(losses.values()) == pytest.approx(losses[temperature], abs=1e-6)
    assert temperature == pytest.approx(overconfidence, rel=0.1)


def test_temperature_is_none_if_probabilities_are_missing() -> None:
    complete = {"gold": "a", "probabilities": {"a": 0.7, "b": 0.3}}
    assert fit_row_temperature([complete, complete | {"gold": "b"}]) is not None
    assert fit_row_temperature([complete, {"gold": "b", "probabilities": {"b": 0.6, "c": 0.4}}]) is None
    assert fit_row_temperature([{"gold": "c", "probabilities": {"a": 0.7, "b": 0.2}}]) is None


def test_per_label_scores_match_scikit_learn() -> None:
    random = np.random.default_rng(0)
    gold, predicted = (random.choice(list("abcd"), 200).tolist() for _ in range(2))
    scores = {row.label: row for row in per_label_scores([{label} for label in gold], [{label} for label in predicted])}
    expected = zip(*precision_recall_fscore_support(gold, predicted, labels=list("abcd")), strict=True)
    for label, (precision, recall, f1, support) in zip("abcd", expected, strict=True):
        row = scores[label]
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx((precision, recall, f1, support))
    assert [row.f1 for row in scores.values()] == sorted(row.f1 for row in scores.values())


def test_confusion_matrix_of_many_labels_keeps_those_with_the_most_errors() -> None:
    pairs = [(f"label {index}", f"label {index}") for index in range(10_000)] + [("label 7", "label 9")] * 3
    matrix = confusion_matrix(pairs)
    assert matrix.labels == ["label 7", "label 9"]
    assert matrix.counts == [[1, 3], [0, 1]]
    assert matrix.num_omitted == 9998
    assert (matrix.shade(0, 0), matrix.shade(0, 1), matrix.shade(1, 0)) == (3, 8, 0)


def test_entity_pairs_match_by_span() -> None:
    gold = ["B-PER", "I-PER", "O", "B-ORG", "O", "B-LOC"]
    predicted = ["B-PER", "I-PER", "O", "B-LOC", "B-PER", "O"]
    pairs = entity_pairs([{"gold": gold, "predicted": predicted}])
    assert sorted(pairs) == [("LOC", NO_ENTITY), ("ORG", "LOC"), ("PER", "PER"), (NO_ENTITY, "PER")]
    assert extract_entities(["NOUN", "VERB"]) == {("NOUN", 0, 0), ("VERB", 1, 1)}


@pytest.mark.parametrize(
    ("gold", "predicted", "pairs"),
    [
        ("U-X O B-X L-X", "U-X O B-Y L-Y", [("X", "X"), ("X", "Y")]),  # BILOU: O is not an entity
        ("PERSON PERSON O ORGANIZATION", "PERSON PERSON O O", [("ORGANIZATION", NO_ENTITY), ("PERSON", "PERSON")]),
        ("b-x i-x o", "b-x b-x o", [("x", NO_ENTITY), (NO_ENTITY, "x"), (NO_ENTITY, "x")]),
    ],
)
def test_report_counts_the_entities_of_bilou_and_plain_tags(gold: str, predicted: str, pairs: list) -> None:
    rows = [{"gold": gold.split(), "predicted": predicted.split()}]
    assert sorted(entity_pairs(rows)) == sorted(pairs)
    tag_set = infer_row_tags(rows)
    labels = {kind for pair in pairs for kind in pair} - {NO_ENTITY}
    sets = ([extract_entities(rows[0][side], tag_set)] for side in ("gold", "predicted"))
    assert {row.label for row in per_label_scores(*sets)} == labels


def test_report_skips_words_without_a_gold_tag() -> None:
    row = {"gold": ["B-X", None, "I-X", None], "predicted": ["B-X", "O", "I-X", "B-X"]}
    row |= {"row": 1, "right": True, "loss": 0.0, "texts": {"tokens": ["New", "-", "York", "x"]}}
    assert entity_pairs([row]) == [("X", "X")]
    (excerpt,) = build_excerpts("tags", [row])
    assert [mark for word, mark in excerpt.texts[0][1] if word.strip()] == ["both", "", "both", ""]
    assert excerpt.gold == excerpt.predicted == "X New York"


def test_worst_mistakes_are_wrong_predictions_by_descending_loss() -> None:
    rows = [{"row": index, "loss": float(index % 7), "right": index % 2 == 0} for index in range(100)]
    mistakes = worst_mistakes(rows)
    assert len(mistakes) == 20
    assert not any(row["right"] for row in mistakes)
    assert [row["loss"] for row in mistakes] == sorted((row["loss"] for row in mistakes), reverse=True)


def test_chart_axes_have_round_ticks_and_all_points_stay_inside() -> None:
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert nice_ticks(-3, 17) == [0, 5, 10, 15]
    assert [tick_label(value) for value in (0, 1500, 2e6, 5e-4, 0.25, -3)] == ["0", "1.5k", "2M", "5e-4", "0.25", "-3"]
    for points in ([(5.0, 5.0)], [(1.0, -1e9), (1e6, 1e9)], [(0.0, 0.0), (1.0, 0.0)]):
        drawing = draw(Chart("a", "A", "x", "y", [Series("s", points)]))
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for shape in drawing.shapes for x, y in shape.dots)
        assert all(0 <= tick.position <= WIDTH for tick in drawing.x_ticks + drawing.y_ticks)


def test_curve_points_average_long_histories_and_skip_missing_values() -> None:
    records = [{"step": step, "loss": float(step)} for step in range(1, 100_001)]
    points = curve_points([*records, {"step": 1, "loss": None}, {"step": 2, "loss": math.nan}, {"step": 3}], "loss")
    assert len(points) == 400
    assert points[0] == (250.0, 125.5)


def test_histogram_counts_each_value_once() -> None:
    (series,) = length_histogram([3, 3, 4, 200]).series
    assert sum(count for _, count in series.points) == 4
    assert len(series.points) <= 30
    assert length_histogram([7]).series[0].points == [(7.5, 1.0)]
