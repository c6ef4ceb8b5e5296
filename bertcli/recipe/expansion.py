"""A grid: lists under keys of `training` make a recipe for each of their combinations."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertcli.errors import RecipeError
from bertcli.recipe.load import lay_over, read_finetuning, resolve
from bertcli.recipe.schema import Recipe
from bertcli.recipe.yaml_layers import Layer

OWN_LISTS = ("seed",)  # a list of seeds is a set of runs of one point
LEAVING = re.compile(r"(?:\.*[/\x00-\x1f\x7f]\.*)+")  # what a folder's name must not hold


@dataclass(frozen=True)
class Grid:
    """Recipes that differ in some keys of `training`, by name (`learning_rate=2e-05,epochs=3`), fit for a folder."""

    points: dict[str, Recipe]

    @property
    def first(self) -> Recipe:
        """One of them, for what they all share."""
        return next(iter(self.points.values()))


def load_recipe_or_grid(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe | Grid:
    """The recipe of a shipped name or a YAML file, or the grid that lists under its `training` keys make.

    Raises:
        RecipeError: with every mistake found, each as `file:line: found … expected …`.
    """
    return resolve_grid(read_finetuning(name_or_path), overrides)


def resolve_grid(layer: Layer, overrides: Sequence[str]) -> Recipe | Grid:
    """The recipe of a layer with `key=value` overrides, or a grid of them.

    Raises:
        RecipeError: with every mistake found.
    """
    whole = copy.deepcopy(layer)
    lay_over(whole, overrides)
    training: Any = whole.values.get("training")
    lists = {
        key: values
        for key, values in (training.items() if isinstance(training, dict) else ())
        if isinstance(values, list) and key not in OWN_LISTS
    }
    empty = [f"{whole.place(('training', key))}: found an empty list" for key, values in lists.items() if not values]
    if empty:
        raise RecipeError(empty)
    points: dict[str, Recipe] = {}
    problems: list[str] = []
    for values in itertools.product(*lists.values()):
        words = [f"{key}={json.dumps(value)}" for key, value in zip(lists, values, strict=True)]
        try:
            recipe = resolve(copy.deepcopy(layer), [*overrides, *(f"training.{word}" for word in words)])
            assert isinstance(recipe, Recipe)
            name = LEAVING.sub("-", ",".join(words).replace('"', ""))
            if name in points:
                raise RecipeError([f"found two points called {name!r}, as their folders are: give each value once"])
            points[name] = recipe
        except RecipeError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise RecipeError(problems)
    return Grid(points) if lists else points[""]
