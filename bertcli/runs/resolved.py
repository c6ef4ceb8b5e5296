"""The resolved recipe that stands in a run folder, beside the one that is asked for."""

from __future__ import annotations

import re
from pathlib import Path

from bertcli.errors import RecipeError
from bertcli.recipe.load import dump_recipe, load_any_recipe


def is_resolved(recipe: Path, asked: str) -> bool:
    """Whether a recipe in a run folder is one that a run wrote there, and no person."""
    text = recipe.read_text("utf-8")
    try:
        return text == asked or text == dump_recipe(load_any_recipe(str(recipe)))
    except RecipeError:
        return False


def with_newer_keys(recipe: Path) -> str:
    """The text of a resolved recipe, with the keys that bertcli has learned since it was written, at their defaults."""
    try:
        return dump_recipe(load_any_recipe(str(recipe)))
    except RecipeError:  # of a suite, or no longer understood
        return recipe.read_text("utf-8")


def first_recipe(text: str) -> str:
    """The recipe of a run; of tasks learned together, whose recipes stand there as comments, the first.

    Those have all sections but their task's in common.
    """
    if not text.startswith("suite:"):
        return text
    return re.split(r"^# (?! )[^:\n]*$", text, flags=re.MULTILINE)[1].replace("\n# ", "\n")


def without(recipe_text: str, sections: set[str]) -> list[str]:
    """The lines of block-style YAML mappings, commented out or not, less the given top-level sections."""
    kept, skipping = [], False
    for commented in recipe_text.splitlines():
        line = commented.removeprefix("# ")
        if line and not line[0].isspace():
            skipping = line.split(":")[0] in sections
        if not skipping:
            kept.append(line)
    return kept
