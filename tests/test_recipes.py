"""Every shipped recipe is a valid one, and says what it is for."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from bertcli.recipe.catalogue import check_recipes
from bertcli.recipe.load import shipped_recipes


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
