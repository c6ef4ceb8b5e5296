"""Expand a recipe with lists to the points of a grid; or resolve a search."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertcli.errors import RecipeError
from bertcli.recipe.load import apply_overrides, resolve_recipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.search import Search, is_grid_list, resolve_search
from bertcli.recipe.yaml_layers import RecipeLayer

UNSAFE_IN_NAME = re.compile(r"(?:\.*[/\x00-\x1f\x7f]\.*)+")  # not allowed in a folder name


@dataclass(frozen=True)
class Grid:
    """Recipes that differ only in some keys of `training`.

    Attributes:
        points: recipes by name, such as `learning_rate=2e-05,epochs=3`; names are safe as folder names.
    """

    points: dict[str, Recipe]

    @property
    def representative(self) -> Recipe:
        """The recipe of the first point, used for everything that all points share."""
        return next(iter(self.points.values()))

    @property
    def members(self) -> dict[str, Recipe]:
        """The recipe of each point, by the name of its run folder."""
        return self.points


def expand_recipe(layer: RecipeLayer, overrides: Sequence[str]) -> Recipe | Grid | Search:
    """Resolve a partial recipe with `key=value` overrides to a recipe, a search, or, if it has lists, a grid.

    Raises:
        RecipeError: if the recipe is invalid; the message lists every error.
    """
    merged = copy.deepcopy(layer)
    override_problems = apply_overrides(merged, overrides)
    if "search" in merged.values:
        merged.problems += override_problems
        return resolve_search(merged)
    training: Any = merged.values.get("training")
    lists = {
        key: values
        for key, values in (training.items() if isinstance(training, dict) else ())
        if is_grid_list(key, values)
    }
    empty = [
        f"{merged.location(('training', key))}: found an empty list for training.{key}, expected at least one value"
        for key, values in lists.items()
        if not values
    ]
    if empty:
        raise RecipeError(empty)
    points: dict[str, Recipe] = {}
    problems: list[str] = []
    for values in itertools.product(*lists.values()):
        settings = [f"{key}={json.dumps(value)}" for key, value in zip(lists, values, strict=True)]
        try:
            recipe = resolve_recipe(
                copy.deepcopy(layer), [*overrides, *(f"training.{setting}" for setting in settings)]
            )
            assert isinstance(recipe, Recipe)
            name = UNSAFE_IN_NAME.sub("-", ",".join(settings).replace('"', ""))
            if name in points:
                raise RecipeError(
                    [f"found two grid points named {name!r}, expected distinct folder names: list each value once"]
                )
            points[name] = recipe
        except RecipeError as error:
            problems = [*dict.fromkeys([*problems, *error.problems])]
    if problems:
        raise RecipeError(problems)
    return Grid(points) if lists else points[""]
