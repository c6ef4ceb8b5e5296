"""Built-in recipes: valid, described, and with the measured results in their headers."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from bertcli.recipe.catalogue import NOT_MEASURED, check_recipes, list_recipes
from bertcli.recipe.load import shipped_recipes

from .conftest import REPOSITORY

MEASURED = [recipe for recipe in list_recipes() if recipe["score"] is not None]


def test_every_shipped_recipe_is_valid() -> None:
    assert {name: problems for name, problems in check_recipes(list(shipped_recipes())).items() if problems} == {}


@pytest.mark.parametrize("name", shipped_recipes())
def test_header_has_a_command_that_works_in_a_shell(name: str) -> None:
    path = shipped_recipes()[name]
    shutil.copy(path, Path.cwd())  # the header of a recipe to copy names it as a file
    lines = path.read_text("utf-8").splitlines()
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("#   bertcli")]
    verb = "pretrain" if name.startswith("pretrain/") else "finetune"
    of_verb = [words[1:] for words in commands if words[0] == verb]
    assert any(recipe in (name, path.name) for recipe, *_ in of_verb)
    for recipe, *keys in of_verb:
        assert check_recipes([recipe], [word for word in keys if "=" in word]) == {recipe: []}


def test_header_has_one_expected_result() -> None:
    measured = [recipe["recipe"] for recipe in MEASURED]
    for name, path in shipped_recipes().items():
        expected = [line for line in path.read_text("utf-8").splitlines() if line.startswith("# expected:")]
        assert len(expected) == 1, name
        assert (expected == [NOT_MEASURED]) == (name not in measured), name


@pytest.mark.parametrize("recipe", MEASURED, ids=lambda recipe: recipe["recipe"])
def test_expected_result_is_the_measured_one(recipe: dict[str, str | None]) -> None:
    """Score and time are in one table row or paragraph of a page under recipes/."""
    text = "\n\n".join(path.read_text("utf-8") for path in sorted((REPOSITORY / "recipes").rglob("*.md")))
    parts = [part for block in text.split("\n\n") for part in (block.splitlines() if block[0] == "|" else [block])]
    numbers = set(re.findall(r"[\d.]+", f"{recipe['score']} {recipe['time'] or ''}"))
    measured = [set(re.findall(r"\d[\d.]*\d|\d", part)) for part in parts if f"`{recipe['recipe']}`" in part]
    assert any(numbers <= found for found in measured), numbers
