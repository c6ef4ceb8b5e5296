"""The section `search`: distributions of keys of `training`, the recipe of a trial, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.errors import RecipeError
from bertcli.mirror import requirements
from bertcli.recipe.catalogue import json_schema
from bertcli.recipe.load import load_recipe
from bertcli.recipe.search import Distribution, Search, dump_search
from bertcli.recipe.suite import load_finetuning

RECIPE = """\
extends: glue/rte
search:
  trials: 30
  budget: 2h
  learning_rate: {log_uniform: [1e-5, 2e-4]}
  global_batch_size: {choice: [16, 32]}
  epochs: {int: [1, 4]}
  label_smoothing: {uniform: [0, 0.3]}
  teacher: {choice: [null, me/large]}
"""


def load(text: str, *overrides: str) -> Search:
    Path("mine.yaml").write_text(text)
    search = load_finetuning("mine.yaml", overrides)
    assert isinstance(search, Search)
    return search


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return caught.value.problems


def test_search_has_the_distributions_and_the_recipe_of_a_trial() -> None:
    search = load(RECIPE)
    assert (search.settings.trials, search.budget_seconds) == (30, 7200)
    assert search.space == {
        "learning_rate": Distribution("log_uniform", (1e-5, 2e-4)),
        "global_batch_size": Distribution("choice", (16, 32)),
        "epochs": Distribution("int", (1, 4)),
        "label_smoothing": Distribution("uniform", (0.0, 0.3)),
        "teacher": Distribution("choice", (None, "me/large")),
    }
    trial = search.trial_recipe({"learning_rate": 3e-5, "epochs": 2})
    assert (trial.training.learning_rate, trial.training.epochs) == (3e-5, 2.0)
    assert trial.model_copy(update={"training": search.base.training}) == search.base
    assert load_recipe("mine.yaml") == search.base
    assert {one.name for one in requirements(search)} >= {"nyu-mll/glue", "me/large"}


def test_search_survives_a_round_trip() -> None:
    search = load(RECIPE)
    assert load(dump_search(search)) == search
    shown = CliRunner().invoke(app, ["recipes", "show", "mine.yaml"]).stdout
    assert load(shown) == search


def test_search_of_the_command_line_replaces_a_distribution() -> None:
    search = load(RECIPE, "search.trials=5", "search.learning_rate.uniform=[1e-5, 1e-4]", "search.epochs=null")
    assert search.settings.trials == 5
    assert search.space["learning_rate"] == Distribution("uniform", (1e-5, 1e-4))
    assert "epochs" not in search.space


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  batch_size: {choice: [16]}", "found key 'batch_size' in section 'search', expected trials and budget, and"),
        ("  batch_size: {choice: [16]}", "Did you mean global_batch_size?"),
        ("  learning_rte: {uniform: [1e-5, 1]}", "Did you mean learning_rate or head_learning_rate?"),
        ("  seed: {int: [1, 9]}", "found key 'seed' in section 'search', expected"),
        ("  epochs: [1, 2]", "found [1, 2] for search.epochs, expected {uniform: [low, high]}, {log_uniform:"),
        ("  epochs: {normal: [1, 2]}", "expected {uniform: [low, high]}"),
        ("  epochs: {int: [1, 2], uniform: [1, 2]}", "expected {uniform: [low, high]}"),
        ("  epochs: {choice: [[1], 2]}", "expected {uniform: [low, high]}"),
        ("  epochs: {choice: [1, 1]}", "expected each value once"),
        ("  epochs: {uniform: [1, 2, 3]}", "expected two numbers: the lowest and the highest value"),
        ("  epochs: {int: [1, 2.5]}", "expected two integers: the lowest and the highest value"),
        ("  epochs: {int: [4, 1]}", "expected the lower value first"),
        ("  label_smoothing: {log_uniform: [0, 0.1]}", "expected values greater than 0, or uniform instead of"),
        ("  label_smoothing: {uniform: [0, 7]}", "found 7.0 for training.label_smoothing, expected a number less than"),
        ("  global_batch_size: {uniform: [8, 9]}", "found 8.0 for training.global_batch_size, expected an integer"),
        ("  schedule: {choice: [linear, cosin]}", "Did you mean cosine?"),
        ("  trials: 0", "found 0 for search.trials, expected a number of at least 1"),
        ("  budget: 2 hours", "found '2 hours' for search.budget, expected a time such as 90s, 30m or 2h"),
        ("  trials: 3", "found no key of training in search, expected {uniform: [low, high]}"),
    ],
)
def test_search_mistakes_name_their_line(line: str, expected: str) -> None:
    also = "  max_grad_norm: {choice: [1, null]}\n" * ("found no key" not in expected)
    problem, *others = problems(f"extends: glue/rte\nsearch:\n{line}\n{also}")
    assert expected in problem
    assert problem.startswith("mine.yaml:2: " if "found no key" in expected else "mine.yaml:3: ")
    assert all("found 9.0" in other for other in others)  # the other end of a range


def test_search_mistakes_are_reported_together_with_those_of_the_recipe() -> None:
    found = problems("extends: glue/rte\nsearch:\n  trials: 0\n  epochs: {int: [2, 1]}\n  teacher: {choice: []}\n")
    assert [problem.partition(": ")[0] for problem in found] == ["mine.yaml:3", "mine.yaml:4", "mine.yaml:5"]
    found = problems(RECIPE + "data: {max_lenght: 3}\n", "hardware.devise=cpu", "search.trials=0", "nothing")
    assert [problem.partition(": ")[0] for problem in found] == [
        "command line",
        "command line",
        "mine.yaml:10",
        "command line",
    ]


def test_search_is_refused_with_a_grid_a_fixed_value_or_a_suite() -> None:
    (problem,) = problems(RECIPE, "training.warmup_ratio=[0, 0.1]")
    assert problem.startswith(
        "command line: found a list for training.warmup_ratio, which means a grid, and search (mi"
    )
    (problem,) = problems(RECIPE, "training.epochs=2")
    assert "found training.epochs, whose values are those of search.epochs (mine.yaml:7); leave it out" in problem
    Path("suite.yaml").write_text("suite: [glue/cola, mine.yaml]\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml:2: found search in a suite; search by each recipe on its own"):
        load_finetuning("suite.yaml")
    assert "mine.yaml:2: found 'x' for search, expected a section" in problems("extends: glue/rte\nsearch: x\n")
    (problem,) = problems(RECIPE, "data.folds=3")
    assert problem == "command line: found data.folds in a search, whose trials are single runs; remove one of them"


def test_search_is_valid_in_the_json_schema() -> None:
    validator = jsonschema.Draft202012Validator(json_schema("finetune"))
    value = {"trials": 3, "epochs": {"int": [1, 2]}, "teacher": {"choice": [None, "x"]}, "warmup_ratio": None}
    validator.validate({"extends": "glue/rte", "search": value})
    for wrong in ({"epochs": {"int": [1.5, 2]}}, {"epochs": [1, 2]}, {"seed": {"int": [1, 2]}}):
        assert not validator.is_valid({"extends": "glue/rte", "search": wrong})
