"""What a recipe's rows are taken for before the first step, and what is refused then, all at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bertcli.errors import RecipeError
from bertcli.finetuning.setup import check_recipe, prepare
from bertcli.recipe.load import load_recipe, recipe_task, shipped_recipes
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import load_finetuning, singles


@pytest.fixture
def recipe_of(encoder: Path, write_recipe: Callable[..., Path]) -> Callable[..., Recipe]:
    def build(task: str, *overrides: str) -> Recipe:
        return load_recipe(
            str(write_recipe(f"task: {{{task}}}\nmodel: {{name: {encoder}}}\ndata: {{max_length: 32}}\n")), overrides
        )

    return build


@pytest.mark.parametrize("head", ["text_classification", "token_classification"])
def test_labels_are_those_of_all_training_rows_however_few_are_learned_from(
    recipe_of: Callable[..., Recipe], head: str
) -> None:
    words = ["a", "b"] * 20 + ["rare"]
    tags = words if head == "text_classification" else [[word] for word in words]
    rows = "".join(json.dumps({"text": "t", "label": tag}) + "\n" for tag in tags)
    Path("rows.jsonl").write_text(rows)
    task = f"head: {head}, files: {{train: rows.jsonl, validation: rows.jsonl}}, text_columns: [text]"
    prepared = prepare(recipe_of(task, "data.max_train_examples=8"), None)
    assert set(prepared.head.labels) == {"a", "b", "rare"}
    assert "rare" not in str(prepared.rows["train"]["label"][:])
    assert len(prepared.references["validation"]) == 41


TEXT = "dataset: sample, config: sentiment, text_columns: [text]"
PAIR = "dataset: sample, config: inference, text_columns: [premise, hypothesis]"
NUMBER = "dataset: sample, config: similarity, text_columns: [sentence1, sentence2], problem: regression"
WORDS = "head: token_classification, dataset: sample, config: entities, text_columns: [tokens]"
QUESTION = "head: question_answering, dataset: sample, config: questions, text_columns: [question, context]"
CHOICE = "head: multiple_choice, dataset: sample, config: choices, text_columns: [text], choice_columns: [choices]"


@pytest.mark.parametrize(
    ("key", "takers"),
    [
        ("training.class_weights=auto", {TEXT, PAIR, WORDS}),
        ("training.label_smoothing=0.1", {TEXT, PAIR, WORDS, CHOICE}),
        ("training.token_cutoff=0.1", {TEXT, PAIR, NUMBER, CHOICE}),
        ("data.long_inputs=windows", {TEXT}),
        ("data.context_tokens=8", {WORDS}),
        ("data.mark_capitals=true", {WORDS}),
    ],
)
def test_a_key_is_refused_where_it_would_do_nothing(
    recipe_of: Callable[..., Recipe], key: str, takers: set[str]
) -> None:
    for task in (TEXT, PAIR, NUMBER, WORDS, QUESTION, CHOICE):
        recipe = recipe_of(f"name: mine, {task}", key)
        if task in takers:
            check_recipe(recipe, recipe_task(recipe))
            continue
        with pytest.raises(RecipeError, match=f"^{key.partition('=')[0]}.* mine ") as caught:
            check_recipe(recipe, recipe_task(recipe))
        assert len(caught.value.problems) == 1


def test_all_that_does_not_fit_is_told_at_once(recipe_of: Callable[..., Recipe]) -> None:
    words = ["training.lora_rank=4", "training.class_weights=auto", "data.context_tokens=8", "evaluation.best_by=f2"]
    recipe = recipe_of(QUESTION, *words)
    with pytest.raises(RecipeError) as caught:
        prepare(recipe, None)
    said = ["evaluation.best_by 'f2'", "class_weights", "context_tokens", "training.lora_rank is"]
    for part, problem in zip(said, caught.value.problems, strict=True):
        assert part in problem


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if not name.startswith("pretrain/")])
def test_shipped_recipes_have_no_key_without_use(name: str) -> None:
    wanted = load_finetuning(name)
    for recipe in [wanted] if isinstance(wanted, Recipe) else singles(wanted).values():
        check_recipe(recipe, recipe_task(recipe))
