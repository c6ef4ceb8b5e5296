"""`bertcli check`: check the data of a recipe before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bertcli.console import Console
from bertcli.finetuning.data_check import DataCheck, check_data
from bertcli.recipe.catalogue import run_recipe_path
from bertcli.recipe.load import load_recipe


def check(name: str, overrides: Sequence[str], *, mirror: Path | None, console: Console) -> DataCheck:
    """Check the data of a fine-tuning recipe: a built-in name, a file or a run folder.

    Raises:
        RecipeError: if the recipe is invalid.
        DataError: if its training or validation rows cannot be read.
    """
    return check_data(load_recipe(run_recipe_path(name), overrides), mirror, console)
