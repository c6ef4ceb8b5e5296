"""Multi-task sampling: tasks are drawn with the configured probabilities, determined by the seed."""

from __future__ import annotations

import numpy as np
import pytest

from bertcli.finetuning.multitask import sample_step_tasks, task_probabilities
from bertcli.recipe.suite import MultitaskSection

SIZES = [400, 1600, 100_000]


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [
        (
            MultitaskSection(sampling="proportional", max_examples=None),
            [400 / 102_000, 1600 / 102_000, 100_000 / 102_000],
        ),
        (MultitaskSection(sampling="proportional", max_examples=8000), [0.04, 0.16, 0.8]),
        (MultitaskSection(sampling="equal"), [1 / 3, 1 / 3, 1 / 3]),
        (
            MultitaskSection(sampling="temperature", max_examples=None, temperature=2.0),
            [20 / 376.228, 40 / 376.228, 316.228 / 376.228],
        ),
    ],
)
def test_task_frequencies_are_within_one_percent_of_the_probabilities(
    mixing: MultitaskSection, expected: list[float]
) -> None:
    probabilities = task_probabilities(SIZES, mixing)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    frequencies = np.bincount(sample_step_tasks(probabilities, 10_000, seed=3), minlength=3) / 10_000
    assert np.abs(frequencies - probabilities).max() < 0.01
    assert (sample_step_tasks(probabilities, 50, 3) == sample_step_tasks(probabilities, 50, 3)).all()
    assert (sample_step_tasks(probabilities, 50, 3) != sample_step_tasks(probabilities, 50, 4)).any()
