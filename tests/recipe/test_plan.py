"""The plan says if the evaluations of a run take a large part of its time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bertcli.recipe.plan import Plan, evaluation_note

PLAN = Plan(
    num_train_examples=1000,
    steps_per_epoch=100,
    total_steps=100,
    warmup_steps=0,
    eval_every_steps=20,
    micro_batch_size=10,
    accumulation_steps=1,
)


@pytest.mark.parametrize(
    ("tokens_per_evaluation", "share"), [(0, None), (19_900, None), (20_400, "about 34%"), (60_000, "about 100%")]
)
def test_evaluations_that_take_more_than_a_third_of_the_training_time_are_noted(
    tokens_per_evaluation: int, share: str | None
) -> None:
    note = evaluation_note(PLAN, 1000.0, tokens_per_evaluation, "on fewer rows (data.max_eval_examples)")
    if share is None:
        assert note is None
    else:
        assert note is not None
        assert f"5 evaluations will take {share} of the time" in note
        assert note.endswith("or on fewer rows (data.max_eval_examples)")


def test_note_on_a_single_evaluation_does_not_suggest_fewer() -> None:
    note = evaluation_note(replace(PLAN, eval_every_steps=PLAN.total_steps), 1000.0, 10**9, "on fewer rows")
    assert note is not None
    assert "1 evaluation will" in note
    assert note.endswith("; evaluate on fewer rows")
