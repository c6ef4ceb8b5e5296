"""Every shipped recipe is a valid one, and says what it is for."""

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


def test_the_check_finds_every_shipped_recipe_fine() -> None:
    assert {name: problems for name, problems in check_recipes(list(shipped_recipes())).items() if problems} == {}


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_header_of_a_recipe_says_a_command_that_a_shell_hands_over_whole(name: str) -> None:
    path = shipped_recipes()[name]
    shutil.copy(path, Path.cwd())  # one that is to be copied is named as a file
    lines = path.read_text("utf-8").splitlines()
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("#   bertcli")]
    verb = "pretrain" if name.startswith("pretrain/") else "finetune"
    taught = [words[1:] for words in commands if words[0] == verb]
    assert any(recipe in (name, path.name) for recipe, *_ in taught)
    for recipe, *keys in taught:
        assert check_recipes([recipe], [word for word in keys if "=" in word]) == {recipe: []}


def test_each_header_says_once_what_to_expect() -> None:
    measured = [recipe["recipe"] for recipe in MEASURED]
    for name, path in shipped_recipes().items():
        told = [line for line in path.read_text("utf-8").splitlines() if line.startswith("# expected:")]
        assert len(told) == 1, name
        assert (told == [NOT_MEASURED]) == (name not in measured), name


@pytest.mark.parametrize("recipe", MEASURED, ids=lambda recipe: recipe["recipe"])
def test_what_to_expect_is_what_was_measured(recipe: dict[str, str | None]) -> None:
    """In one row of a table, or one paragraph, of a README under recipes/."""
    text = "\n\n".join(path.read_text("utf-8") for path in sorted((REPOSITORY / "recipes").rglob("README.md")))
    places = [place for part in text.split("\n\n") for place in (part.splitlines() if part[0] == "|" else [part])]
    numbers = set(re.findall(r"[\d.]+", f"{recipe['score']} {recipe['time'] or ''}"))
    told = [set(re.findall(r"\d[\d.]*\d|\d", place)) for place in places if f"`{recipe['recipe']}`" in place]
    assert any(numbers <= found for found in told), numbers
