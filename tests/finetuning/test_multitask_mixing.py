"""Which task a step is of: by the shares that were asked for, from the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from bertcli.finetuning.multitask import mixing_shares, tasks_of_steps
from bertcli.recipe.suite import Mixing

SIZES = [400, 1600, 100_000]


@pytest.mark.parametrize(
    ("mixing", "shares"),
    [
        (Mixing(kind="proportional", cap=None), [400 / 102_000, 1600 / 102_000, 100_000 / 102_000]),
        (Mixing(kind="proportional", cap=8000), [0.04, 0.16, 0.8]),
        (Mixing(kind="equal"), [1 / 3, 1 / 3, 1 / 3]),
        (Mixing(kind="temperature", cap=None, temperature=2.0), [20 / 376.228, 40 / 376.228, 316.228 / 376.228]),
    ],
)
def test_ten_thousand_draws_are_within_one_percent_of_the_shares(mixing: Mixing, shares: list[float]) -> None:
    computed = mixing_shares(SIZES, mixing)
    np.testing.assert_allclose(computed, shares, atol=1e-5)
    drawn = np.bincount(tasks_of_steps(computed, 10_000, seed=3), minlength=3) / 10_000
    assert np.abs(drawn - computed).max() < 0.01
    assert (tasks_of_steps(computed, 50, 3) == tasks_of_steps(computed, 50, 3)).all()
    assert (tasks_of_steps(computed, 50, 3) != tasks_of_steps(computed, 50, 4)).any()
