"""What a recipe's rows are taken for before the first step, and what is refused then, all at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bertcli.commands.prepare import prepare
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe


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
