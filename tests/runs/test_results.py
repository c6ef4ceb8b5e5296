"""Typed results keep the content of `results.json`, key by key."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bertcli.runs.results import CollectionResults, EvalResults, Results, RunResults, SeedScore, summarize_seeds

RUN: dict[str, Any] = {
    "run": "runs/a",
    "task": "sample/sentiment",
    "model": None,
    "metrics": {"validation": {"accuracy": 0.5, "loss": 0.7}},
    "best_by": "accuracy",
    "train_seconds": 2.5,
    "tag_scheme": "IOB2",  # of a head, unknown here
}
GRID = RUN | {"table": [{"run": "epochs=1", "mean": "0.5"}], "points": {"epochs=1": RUN}, "chosen": "epochs=1"}
FOLDS = RUN | {"table": [{"fold": "fold-1"}], "folds": {"fold-1": RUN | {"data_fingerprint": "0f"}}}
SUITE = {"run": "runs/all", "table": [{"task": "a"}], "tasks": {"a": RUN, "b": GRID}, "failed": {"c": "why"}}


@pytest.mark.parametrize("content", [RUN, GRID, FOLDS, SUITE], ids=["run", "grid", "folds", "suite"])
def test_results_are_read_and_written_without_loss(content: dict[str, Any]) -> None:
    results = Results.from_json(content)
    assert isinstance(results, CollectionResults) == ("table" in content)
    assert results.to_json() == content
    assert Results.from_json(results.to_json()) == results


def test_results_of_a_grid_in_a_suite_stay_those_of_a_grid() -> None:
    suite = CollectionResults.model_validate(SUITE)
    assert suite.tasks is not None
    grid = suite.tasks["b"]
    assert isinstance(grid, CollectionResults)
    assert grid.chosen == "epochs=1"
    assert suite.members == ["a", "b"]


def test_seeds_are_summarized_as_mean_and_standard_deviation() -> None:
    each = [RunResults(run=f"seed-{seed}", metrics={"test": {"f1": 0.2 * seed}}, train_seconds=3.0) for seed in (1, 2)]
    summary = summarize_seeds(each, "runs/a")
    score = summary.metrics["test"]["f1"]
    assert isinstance(score, SeedScore)
    assert (score.mean, score.sd, score.values) == (pytest.approx(0.3), pytest.approx(0.02**0.5), [0.2, 0.4])
    assert (summary.train_seconds, summary.runs) == (6.0, ["seed-1", "seed-2"])
    assert summary.mean("f1", "test") == pytest.approx(0.3)


def test_summary_of_evaluations_has_no_training_facts() -> None:
    each = [EvalResults(run="a", task="t", metrics={"test": {"f1": 0.5}}, num_examples=3)] * 2
    assert set(summarize_seeds(each, "a").to_json()) == {"run", "task", "metrics", "train_seconds", "runs"}


@pytest.mark.parametrize("table", [[], [{"run": "a", "mean": "1"}, {"run": "b"}]])
def test_table_without_rows_or_with_uneven_ones_is_refused(table: list[dict[str, str]]) -> None:
    with pytest.raises(ValidationError, match="at least one row, and the same columns in all"):
        Results.from_json(GRID | {"table": table})
