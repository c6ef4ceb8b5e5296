"""Grids: lists under keys of `training` expand to one recipe per combination; each error is reported once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertcli.errors import RecipeError
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, load_finetuning, recipes_by_name


def load(text: str, *overrides: str) -> Recipe | Grid:
    Path("mine.yaml").write_text(text)
    return load_finetuning("mine.yaml", overrides)


def test_grid_has_a_point_per_combination_and_none_per_seed() -> None:
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
    assert grid.representative.training.global_batch_size == 16


def test_grid_needs_a_list_that_no_later_override_replaces() -> None:
    assert isinstance(load("task: glue/rte\ntraining: {seed: [1, 2]}\n"), Recipe)
    assert isinstance(load("task: glue/rte\ntraining: {epochs: [1, 2]}\n", "training.epochs=3"), Recipe)


def test_grid_point_names_are_readable() -> None:
    grid = load("task: glue/rte\ntraining: {schedule: [linear, cosine], max_grad_norm: [null, 1]}\n")
    assert isinstance(grid, Grid)
    assert next(iter(grid.points)) == "schedule=linear,max_grad_norm=null"


def test_grid_reports_each_error_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load("task: glue/rte\ntraining:\n  epochs: [1, 2]\n  learning_rte: [1, 2]\n  warmup_ratio: [0.1, 7]\n")
    text = str(caught.value)
    assert text.count("learning_rte") == 1
    assert "did you mean learning_rate" in text.lower()
    assert "warmup_ratio" in text
    with pytest.raises(RecipeError, match=r"mine\.yaml:2: found an empty list"):
        load("task: glue/rte\ntraining: {epochs: []}\n")


def test_folds_are_a_recipe_each_that_differs_only_in_the_fold() -> None:
    recipe = load("task: glue/rte\ndata: {folds: 3}\n")
    assert isinstance(recipe, Recipe)
    folds = recipe.members
    assert list(folds) == ["fold-1", "fold-2", "fold-3"]
    assert [fold.data.fold for fold in folds.values()] == [1, 2, 3]
    assert load(dump_recipe(folds["fold-2"])) == folds["fold-2"]
    assert folds["fold-2"].model_copy(update={"data": recipe.data}) == recipe
    assert load(dump_recipe(folds["fold-2"]), "data.folds=null", "data.fold=null") == load("task: glue/rte\n")


def test_grids_inside_a_suite() -> None:
    Path("suite.yaml").write_text("suite: [glue/rte, glue/mrpc]\ntraining: {epochs: [2, 3]}\n")
    suite = load_finetuning("suite.yaml")
    assert isinstance(suite, Suite)
    assert list(recipes_by_name(suite)) == [
        f"glue/{task},epochs={number}" for task in ("rte", "mrpc") for number in (2, 3)
    ]
