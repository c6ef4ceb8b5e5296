"""Suites: shared keys, subsets, and recipes that start from each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bertcli.errors import RecipeError
from bertcli.recipe.load import load_recipe
from bertcli.recipe.suite import Suite, load_suite

Write = Callable[..., Path]
TASKS = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


def suite_of(path: Path | str, *overrides: str) -> Suite:
    suite = load_suite(str(path), overrides)
    assert suite is not None
    return suite


def test_shipped_suite_is_all_of_glue_and_its_keys_override_each_recipe() -> None:
    suite = suite_of("glue", "model.name=mine", "training.epochs=7")
    assert [name.rpartition("/")[2] for name in suite.recipes] == TASKS
    for name, recipe in suite.recipes.items():
        assert (recipe.model.name, recipe.training.epochs, recipe.training.seed) == ("mine", 7.0, (1,))
        assert recipe.task == name
        assert recipe.training.global_batch_size == load_recipe(name).training.global_batch_size


def test_suite_subset_by_short_name_runs_sources_first() -> None:
    suite = suite_of("glue", "suite=[rte, mrpc, mnli]", "start_from={rte: mnli, mrpc: rte}")
    assert list(suite.recipes) == ["glue/mnli", "glue/rte", "glue/mrpc"]
    assert suite.start_from == {"glue/rte": "glue/mnli", "glue/mrpc": "glue/rte"}


def test_suite_precedence_is_recipe_then_suite_then_command_line(write_recipe: Write) -> None:
    write_recipe("task: sample/topics\ntraining: {epochs: 1, global_batch_size: 1, seed: 1}\n", "one.yaml")
    path = write_recipe("suite: [one.yaml]\ntraining: {global_batch_size: 2, seed: 2}\n")
    (recipe,) = suite_of(path, "training.seed=3").recipes.values()
    training = recipe.training
    assert (training.epochs, training.global_batch_size, training.seed) == (1.0, 2, (3,))


def test_suite_is_not_a_recipe_and_recipe_not_a_suite() -> None:
    assert load_suite("glue/sst2") is None
    with pytest.raises(RecipeError, match="is a suite"):
        load_recipe("glue")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("suite: [glue/rte, glue/rtte]\n", "found no recipe 'glue/rtte'"),
        ("suite: []\n", "expected at least 1"),
        ("suite: [glue/rte]\ntraining: {epoch: 1}\n", "recipe.yaml:2: found unknown key 'epoch'"),
        ("suite: [glue/rte]\nstart_from: {rrte: x}\n", "Did you mean rte"),
        ("suite: [glue/rte, glue/mrpc]\nstart_from: {rte: mrpc, mrpc: rte}\n", "start from each other"),
        ("suite: [glue/rte, glue/mrpc]\ndata: {folds: 2}\n", "found data.folds with glue/rte, expected no folds in a"),
    ],
)
def test_suite_reports_each_error_once(write_recipe: Write, text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_suite(str(write_recipe(text)))
    assert len([line for line in caught.value.problems if words in line]) == 1


def test_suite_reports_an_unknown_key_of_multitask() -> None:
    Path("suite.yaml").write_text("suite: [sample/sentiment]\nmultitask: {samplin: equal}\n")
    with pytest.raises(
        RecipeError, match=r"found unknown key 'samplin' in section 'multitask'.* Did you mean sampling"
    ):
        load_suite("suite.yaml", [])
