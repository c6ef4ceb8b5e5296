"""`bertcli check`: check the data of a recipe before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bertcli.console import Console
from bertcli.finetuning.data_check import DataCheck, check_data
from bertcli.recipe.catalogue import run_recipe_path
from bertcli.recipe.expansion import expand_recipe
from bertcli.recipe.load import read_finetune_recipe


def check(name: str, overrides: Sequence[str], *, mirror: Path | None, console: Console) -> DataCheck:
    """Check the data of a fine-tuning recipe, grid or search: a built-in name, a file or a run folder.

    Raises:
        RecipeError: if the recipe is invalid, or a suite.
        DataError: if its training or validation rows cannot be read.
    """
    recipe = expand_recipe(read_finetune_recipe(run_recipe_path(name)), overrides)
    return check_data(recipe.representative, mirror, console)
