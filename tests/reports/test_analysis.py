"""What answers tell, against direct computations: calibration, temperature, scores by label, confusion, axes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import precision_recall_fscore_support

from bertcli.reports.analysis import (
    NOTHING,
    calibration,
    confusion,
    entities_of,
    entity_pairs,
    scores_by_label,
    temperature,
    temperature_of,
    worst,
)
from bertcli.reports.charts import HEIGHT, WIDTH, Chart, Series, draw, histogram, nice_ticks, points_of, tick_label


def test_the_expected_calibration_error_is_the_mean_distance_of_the_bins() -> None:
    random = np.random.default_rng(0)
    sure, right = random.random(500), random.random(500) < 0.6
    expected, shares = 0.0, []
    for low in range(10):
        inside = (sure > low / 10) & (sure <= (low + 1) / 10)
        expected += inside.sum() / 500 * abs(right[inside].mean() - sure[inside].mean())
        shares.append(right[inside].mean())
    found = calibration(sure.tolist(), right.tolist())
    assert found.expected_error == pytest.approx(expected)
    assert found.shares_right == pytest.approx(shares)


def test_an_answer_that_is_always_right_and_quite_sure_is_calibrated() -> None:
    found = calibration([1.0, 1.0, 0.0], [True, True, False])
    assert found.expected_error == 0
    assert (found.shares_right[0], found.shares_right[5], found.shares_right[-1]) == (0.0, None, 1.0)


@pytest.mark.parametrize("made_too_sure_by", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_model_too_sure(made_too_sure_by: float) -> None:
    random = np.random.default_rng(0)
    logits = 2 * random.standard_normal((4000, 3))
    gold = np.asarray([random.choice(3, p=row) for row in softmax(logits, axis=-1)])
    told = softmax(logits * made_too_sure_by, axis=-1)
    found = temperature(told, gold)
    costs = {
        value: -np.log(softmax(logits * made_too_sure_by / value, axis=-1)[np.arange(4000), gold]).mean()
        for value in (*np.geomspace(0.1, 10, 200), found)
    }
    assert min(costs.values()) == pytest.approx(costs[found], abs=1e-6)
    assert found == pytest.approx(made_too_sure_by, rel=0.1)


def test_there_is_no_temperature_where_some_probabilities_were_left_out() -> None:
    whole = {"gold": "a", "probabilities": {"a": 0.7, "b": 0.3}}
    assert temperature_of([whole, whole | {"gold": "b"}]) is not None
    assert temperature_of([whole, {"gold": "b", "probabilities": {"b": 0.6, "c": 0.4}}]) is None
    assert temperature_of([{"gold": "c", "probabilities": {"a": 0.7, "b": 0.2}}]) is None


def test_scores_by_label_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    gold, predicted = (random.choice(list("abcd"), 200).tolist() for _ in range(2))
    found = {one.label: one for one in scores_by_label([{one} for one in gold], [{one} for one in predicted])}
    expected = zip(*precision_recall_fscore_support(gold, predicted, labels=list("abcd")), strict=True)
    for label, (precision, recall, f1, support) in zip("abcd", expected, strict=True):
        one = found[label]
        assert (one.precision, one.recall, one.f1, one.support) == pytest.approx((precision, recall, f1, support))
    assert [one.f1 for one in found.values()] == sorted(one.f1 for one in found.values())


def test_a_confusion_matrix_of_many_labels_keeps_those_with_the_most_mistakes() -> None:
    pairs = [(f"label {at}", f"label {at}") for at in range(10_000)] + [("label 7", "label 9")] * 3
    found = confusion(pairs)
    assert found.labels == ["label 7", "label 9"]
    assert found.counts == [[1, 3], [0, 1]]
    assert found.num_left_out == 9998
    assert (found.shade(0, 0), found.shade(0, 1), found.shade(1, 0)) == (3, 8, 0)


def test_entities_are_paired_by_their_words() -> None:
    gold = ["B-PER", "I-PER", "O", "B-ORG", "O", "B-LOC"]
    found = ["B-PER", "I-PER", "O", "B-LOC", "B-PER", "O"]
    pairs = entity_pairs([{"gold": gold, "predicted": found}])
    assert sorted(pairs) == [("LOC", NOTHING), ("ORG", "LOC"), ("PER", "PER"), (NOTHING, "PER")]
    assert entities_of(["NOUN", "VERB"]) == {("NOUN", 0, 0), ("VERB", 1, 1)}


def test_the_worst_mistakes_are_wrong_and_come_worst_first() -> None:
    rows = [{"row": at, "loss": float(at % 7), "right": at % 2 == 0} for at in range(100)]
    found = worst(rows)
    assert len(found) == 20
    assert not any(row["right"] for row in found)
    assert [row["loss"] for row in found] == sorted((row["loss"] for row in found), reverse=True)


def test_axes_have_round_numbers_and_everything_stays_in_the_picture() -> None:
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert nice_ticks(-3, 17) == [0, 5, 10, 15]
    assert [tick_label(value) for value in (0, 1500, 2e6, 5e-4, 0.25, -3)] == ["0", "1.5k", "2M", "5e-4", "0.25", "-3"]
    for points in ([(5.0, 5.0)], [(1.0, -1e9), (1e6, 1e9)], [(0.0, 0.0), (1.0, 0.0)]):
        drawing = draw(Chart("a", "A", "x", "y", [Series("s", points)]))
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for shape in drawing.shapes for x, y in shape.dots)
        assert all(0 <= tick.at <= WIDTH for tick in drawing.x_ticks + drawing.y_ticks)


def test_long_curves_are_thinned_and_numbers_that_are_none_left_out() -> None:
    records = [{"step": step, "loss": float(step)} for step in range(1, 100_001)]
    found = points_of([*records, {"step": 1, "loss": None}, {"step": 2, "loss": math.nan}, {"step": 3}], "loss")
    assert len(found) == 400
    assert found[0] == (250.0, 125.5)


def test_a_histogram_counts_everything_once() -> None:
    (series,) = histogram([3, 3, 4, 200]).series
    assert sum(count for _, count in series.points) == 4
    assert len(series.points) <= 30
    assert histogram([7]).series[0].points == [(7.5, 1.0)]
