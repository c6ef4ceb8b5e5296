"""Set up a fine-tuning run: labels come from all rows, and all invalid keys are reported at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bertcli.errors import RecipeError
from bertcli.finetuning.setup import check_recipe, set_up
from bertcli.recipe.load import load_recipe, recipe_task, shipped_recipes
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import load_finetuning, recipes_by_name


@pytest.fixture
def recipe_of(encoder: Path, write_recipe: Callable[..., Path]) -> Callable[..., Recipe]:
    def build(task: str, *overrides: str) -> Recipe:
        return load_recipe(
            str(write_recipe(f"task: {{{task}}}\nmodel: {{name: {encoder}}}\ndata: {{max_length: 32}}\n")), overrides
        )

    return build


@pytest.mark.parametrize("head", ["text_classification", "token_classification"])
def test_labels_come_from_all_training_rows_even_if_a_subset_is_trained_on(
    recipe_of: Callable[..., Recipe], head: str
) -> None:
    words = ["a", "b"] * 20 + ["rare"]
    tags = words if head == "text_classification" else [[word] for word in words]
    rows = "".join(json.dumps({"text": "t", "label": tag}) + "\n" for tag in tags)
    Path("rows.jsonl").write_text(rows)
    task = f"head: {head}, files: {{train: rows.jsonl, validation: rows.jsonl}}, text_columns: [text]"
    setup = set_up(recipe_of(task, "data.max_train_examples=8"), None)
    assert set(setup.head.labels) == {"a", "b", "rare"}
    assert "rare" not in str(setup.rows["train"]["label"][:])
    assert len(setup.references["validation"]) == 41


TEXT = "dataset: sample, config: sentiment, text_columns: [text]"
PAIR = "dataset: sample, config: inference, text_columns: [premise, hypothesis]"
NUMBER = "dataset: sample, config: similarity, text_columns: [sentence1, sentence2], problem: regression"
WORDS = "head: token_classification, dataset: sample, config: entities, text_columns: [tokens]"
QUESTION = "head: question_answering, dataset: sample, config: questions, text_columns: [question, context]"
CHOICE = "head: multiple_choice, dataset: sample, config: choices, text_columns: [text], choice_columns: [choices]"


@pytest.mark.parametrize(
    ("key", "supporting_tasks"),
    [
        ("training.class_weights=auto", {TEXT, PAIR, WORDS}),
        ("training.label_smoothing=0.1", {TEXT, PAIR, WORDS, CHOICE}),
        ("training.token_cutoff=0.1", {TEXT, PAIR, NUMBER, CHOICE}),
        ("data.long_inputs=windows", {TEXT}),
        ("data.context_tokens=8", {WORDS}),
        ("data.casing_feature=true", {WORDS}),
    ],
)
def test_keys_that_the_head_does_not_support_are_rejected(
    recipe_of: Callable[..., Recipe], key: str, supporting_tasks: set[str]
) -> None:
    for task in (TEXT, PAIR, NUMBER, WORDS, QUESTION, CHOICE):
        recipe = recipe_of(f"name: mine, {task}", key)
        if task in supporting_tasks:
            check_recipe(recipe, recipe_task(recipe))
            continue
        with pytest.raises(RecipeError, match=f"^{key.partition('=')[0]}.* mine ") as error:
            check_recipe(recipe, recipe_task(recipe))
        assert len(error.value.problems) == 1


def test_all_invalid_keys_are_reported_at_once(recipe_of: Callable[..., Recipe]) -> None:
    overrides = [
        "training.lora_rank=4",
        "training.class_weights=auto",
        "data.context_tokens=8",
        "evaluation.best_by=f2",
    ]
    recipe = recipe_of(QUESTION, *overrides)
    with pytest.raises(RecipeError) as error:
        set_up(recipe, None)
    expected = ["evaluation.best_by 'f2'", "class_weights", "context_tokens", "training.lora_rank is"]
    for words, problem in zip(expected, error.value.problems, strict=True):
        assert words in problem


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if not name.startswith("pretrain/")])
def test_shipped_recipes_set_only_supported_keys(name: str) -> None:
    loaded = load_finetuning(name)
    for recipe in [loaded] if isinstance(loaded, Recipe) else recipes_by_name(loaded).values():
        check_recipe(recipe, recipe_task(recipe))
