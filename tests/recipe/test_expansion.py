"""Lists under training keys make a recipe for each combination; mistakes in them are told once, at their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertcli.errors import RecipeError
from bertcli.recipe.expansion import Grid, load_recipe_or_grid
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, load_finetuning, singles


def load(text: str, *overrides: str) -> Recipe | Grid:
    Path("mine.yaml").write_text(text)
    return load_recipe_or_grid("mine.yaml", overrides)


def test_every_combination_is_a_point_and_seeds_are_none() -> None:
    grid = load(
        "task: glue/rte\ntraining: {learning_rate: [2e-5, 3e-5], seed: [1, 2]}\n", "training.global_batch_size=[16, 32]"
    )
    assert isinstance(grid, Grid)
    assert list(grid.points) == [
        "learning_rate=2e-05,global_batch_size=16",
        "learning_rate=2e-05,global_batch_size=32",
        "learning_rate=3e-05,global_batch_size=16",
        "learning_rate=3e-05,global_batch_size=32",
    ]
    last = grid.points["learning_rate=3e-05,global_batch_size=32"].training
    assert (last.learning_rate, last.global_batch_size, last.seed) == (3e-5, 32, (1, 2))
    assert grid.first.training.global_batch_size == 16


def test_without_lists_it_is_a_recipe_and_a_later_word_ends_a_list() -> None:
    assert isinstance(load("task: glue/rte\ntraining: {seed: [1, 2]}\n"), Recipe)
    assert isinstance(load("task: glue/rte\ntraining: {epochs: [1, 2]}\n", "training.epochs=3"), Recipe)


def test_names_of_points_are_plain() -> None:
    grid = load("task: glue/rte\ntraining: {schedule: [linear, cosine], max_grad_norm: [null, 1]}\n")
    assert isinstance(grid, Grid)
    assert next(iter(grid.points)) == "schedule=linear,max_grad_norm=null"


def test_mistakes_are_told_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load("task: glue/rte\ntraining:\n  epochs: [1, 2]\n  learning_rte: [1, 2]\n  warmup_ratio: [0.1, 7]\n")
    text = str(caught.value)
    assert text.count("learning_rte") == 1
    assert "did you mean learning_rate" in text.lower()
    assert "warmup_ratio" in text
    with pytest.raises(RecipeError, match=r"mine\.yaml:2: found an empty list"):
        load("task: glue/rte\ntraining: {epochs: []}\n")


def test_a_suite_holds_grids() -> None:
    Path("suite.yaml").write_text("suite: [glue/rte, glue/mrpc]\ntraining: {epochs: [2, 3]}\n")
    suite = load_finetuning("suite.yaml")
    assert isinstance(suite, Suite)
    assert list(singles(suite)) == [f"glue/{task},epochs={number}" for task in ("rte", "mrpc") for number in (2, 3)]
