"""Every shipped recipe is a valid one, and says what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertcli.recipe.load import load_pretrain_recipe, load_recipe, shipped_recipes
from bertcli.recipe.suite import load_suite


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_valid_and_says_its_command(name: str) -> None:
    verb = "pretrain" if name.startswith("pretrain/") else "finetune"
    assert load_pretrain_recipe(name) if verb == "pretrain" else load_suite(name) or load_recipe(name)
    header = [line for line in Path(shipped_recipes()[name]).read_text("utf-8").splitlines() if line.startswith("#")]
    assert any(f"bertcli {verb}" in line for line in header)
