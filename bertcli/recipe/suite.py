"""Suites: several recipes, run one after another or trained jointly, with shared keys that override each of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from bertcli.errors import RecipeError, did_you_mean, quoted
from bertcli.recipe.expansion import Grid, expand_recipe
from bertcli.recipe.load import find_recipe, read_finetune_recipe, read_with_extends, validate_section
from bertcli.recipe.schema import Recipe
from bertcli.recipe.search import Search
from bertcli.recipe.yaml_layers import RecipeLayer, merge_layers, parse_overrides
from bertcli.tasks.task import Names, Section

SUITE_KEYS = ("suite", "start_from", "multitask")
MULTITASK_SHARED_SECTIONS = ("model", "training", "evaluation", "hardware")  # equal in all recipes of a multitask run


class MultitaskSection(Section):
    """How the training steps of a multitask run are divided among its tasks."""

    sampling: Literal["proportional", "equal", "temperature"] = Field(
        "proportional",
        description="steps per task: proportional to its training rows, equal, or proportional to rows^(1/temperature)",
    )
    max_examples: int | None = Field(
        16384, ge=1, description="cap on the number of training rows counted per task; null: no cap"
    )
    temperature: float = Field(
        2.0, ge=1, description="temperature for `sampling: temperature`: 1 is proportional, larger is closer to equal"
    )


class SuiteKeys(Section):
    """The top-level keys of a suite; all its other keys override those of each recipe."""

    suite: Names = Field(min_length=1, description="recipes to run, by name or path")
    start_from: dict[str, str] | None = Field(
        None, description="recipe → the recipe of the suite (or finished run) whose encoder it starts from"
    )
    multitask: MultitaskSection | None = Field(
        None, description="train one encoder on all recipes jointly, with one head per task"
    )


@dataclass(frozen=True)
class Suite:
    """Recipes by name, in the order they run: a recipe comes after the one it starts from."""

    recipes: dict[str, Recipe | Grid]
    start_from: dict[str, str]
    multitask: MultitaskSection | None = None

    @property
    def representative(self) -> Recipe:
        """The first recipe, used for everything that all recipes share, such as the hardware."""
        return next(iter(self.recipes.values())).representative

    @property
    def members(self) -> dict[str, Recipe | Grid]:
        """The recipes by the names of their folders."""
        return {run_folder(Path(), name).name: recipe for name, recipe in self.recipes.items()}


Experiment = Recipe | Grid | Search | Suite
"""Anything that `bertcli finetune` accepts.

All have a `representative` recipe, and all but a search have `members`: the recipes of the runs in folders inside the
run folder, which are empty for a single run.
"""


def load_finetuning(name_or_path: str, overrides: Sequence[str] = ()) -> Experiment:
    """Load anything that `bertcli finetune` accepts, by built-in name or from a YAML file.

    That is a recipe, a grid (lists under `training`), a search (the section `search`) or a suite (`suite`).

    Raises:
        RecipeError: if a recipe is invalid; the message lists every error as `file:line: found … expected …`.
    """
    return load_suite(name_or_path, overrides) or expand_recipe(read_finetune_recipe(name_or_path), overrides)


def load_suite(name_or_path: str, overrides: Sequence[str] = ()) -> Suite | None:
    """Load a suite by built-in name (`glue`) or from a YAML file; return None for a recipe that is not a suite.

    Precedence, lowest first: the recipe, the suite's sections, the command line. `suite=[cola, rte]` runs a subset.

    Raises:
        RecipeError: if the suite is invalid; the message lists every error as `file:line: found … expected …`.
    """
    path = find_recipe(name_or_path)
    layer = read_with_extends(path, Recipe)
    if "suite" not in layer.values:
        return None
    all_names = layer.values["suite"]
    suite_overrides, recipe_overrides = _split_overrides(overrides)
    suite_layer = parse_overrides(suite_overrides, Recipe)
    problems = [*layer.problems, *suite_layer.problems]
    merge_layers(layer, suite_layer)
    shared_values = {key: value for key, value in layer.values.items() if key not in SUITE_KEYS}
    shared = RecipeLayer(Recipe, shared_values, layer.locations)
    suite_values = {key: layer.values[key] for key in SUITE_KEYS if key in layer.values}
    keys, key_problems = validate_section(SuiteKeys, suite_values, layer, ())
    problems += key_problems
    if not isinstance(keys, SuiteKeys):
        raise RecipeError(problems)
    by_short_name = {name.rpartition("/")[2]: name for name in all_names}
    names = [by_short_name.get(name, name) for name in keys.suite]
    start_from = {by_short_name.get(a, a): by_short_name.get(b, b) for a, b in (keys.start_from or {}).items()}
    known = [by_short_name.get(name, name) for name in all_names]
    problems += [
        f"found start_from for {quoted(name)}, expected one of {names}.{did_you_mean(name, by_short_name)}"
        for name in start_from
        if name not in known
    ]
    recipes: dict[str, Recipe | Grid] = {}
    for name in names:
        try:
            member = read_with_extends(find_recipe(name, path.parent), Recipe)
            merge_layers(member, copy.deepcopy(shared))
            expanded = expand_recipe(member, recipe_overrides)
            if isinstance(expanded, Search):
                location = member.location(("search",))
                raise RecipeError([f"{location}: found search in a suite; search by each recipe on its own"])
            recipes[name] = expanded
        except RecipeError as error:
            problems = [*dict.fromkeys([*problems, *error.problems])]
    problems += [
        f"found data.folds with {name}, expected no folds in a suite: cross-validate each recipe by itself"
        for name, member in recipes.items()
        if member.representative.data.folds is not None
    ]
    problems += _folder_conflicts(names)
    if keys.multitask is not None and not problems:
        problems += _multitask_conflicts(recipes, start_from)
    if problems:
        raise RecipeError(problems)
    order = list(_dependency_order(list(recipes), start_from))
    return Suite({name: recipes[name] for name in order}, start_from, keys.multitask)


def _split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of the suite's top-level keys, and those of its recipes."""
    of_suite = [word for word in overrides if word.partition("=")[0].split(".")[0] in SUITE_KEYS]
    return of_suite, [word for word in overrides if word not in of_suite]


def _multitask_conflicts(recipes: dict[str, Recipe | Grid], start_from: dict[str, str]) -> list[str]:
    """Return the reasons why recipes cannot be trained jointly."""
    problems = [
        "found start_from with multitask: multitask training starts from one model; leave one of them out"
    ] * bool(start_from)
    if any(isinstance(recipe, Grid) for recipe in recipes.values()):
        return [*problems, "found a list under `training` with multitask: multitask training takes one value per key"]
    members = {name: recipe for name, recipe in recipes.items() if isinstance(recipe, Recipe)}
    for section in MULTITASK_SHARED_SECTIONS:
        for key in type(getattr(next(iter(members.values())), section)).model_fields:
            values = {name: getattr(getattr(recipe, section), key) for name, recipe in members.items()}
            if len({repr(value) for value in values.values()}) > 1:
                found = ", ".join(f"{value} ({name})" for name, value in values.items())
                problems.append(
                    f"found {section}.{key} {found}, expected one value for multitask training: set it in the suite"
                )
    return problems


def _folder_conflicts(names: list[str]) -> Iterator[str]:
    """Yield a message for each pair of recipes whose runs would use the same folder."""
    owners: dict[Path, str] = {}
    for name in dict.fromkeys(names):
        folder = run_folder(Path(), name)
        if folder in owners:
            yield f"the runs of {owners[folder]} and {name} would both use the folder {folder}; rename one recipe"
        owners.setdefault(folder, name)


def run_folder(folder: Path, name: str) -> Path:
    """Return the run folder of recipe `name` in a suite that runs in `folder`."""
    return folder / Path(name).with_suffix("").as_posix().strip("./").replace("/", "-")


def _dependency_order(names: list[str], start_from: dict[str, str]) -> Iterator[str]:
    """Yield the names in the given order, except that a recipe comes after the one it starts from.

    Raises:
        RecipeError: if recipes start from each other in a cycle.
    """
    waiting = list(names)
    while waiting:
        ready = next((name for name in waiting if start_from.get(name) not in waiting), None)
        if ready is None:
            raise RecipeError([f"found a cycle in start_from: {', '.join(waiting)} start from each other"])
        waiting.remove(ready)
        yield ready


def recipes_by_name(suite_or_grid: Suite | Grid) -> dict[str, Recipe]:
    """Return all recipes of a suite or a grid by name; a grid inside a suite is expanded into its points."""
    if isinstance(suite_or_grid, Grid):
        return suite_or_grid.points
    recipes: dict[str, Recipe] = {}
    for name, member in suite_or_grid.recipes.items():
        if isinstance(member, Grid):
            recipes |= {f"{name},{point}": recipe for point, recipe in member.points.items()}
        else:
            recipes[name] = member
    return recipes


def recipes_by_folder(recipe: Recipe | Grid | Suite, folder: Path) -> dict[Path, Recipe]:
    """Return the recipe of each run by its folder: `folder`, or those inside it of folds, grid points and a suite."""
    if isinstance(recipe, Recipe) and not recipe.members:
        return {folder: recipe}
    return {
        path: single
        for name, member in recipe.members.items()
        for path, single in recipes_by_folder(member, folder / name).items()
    }


def independent_recipes_by_folder(recipe: Recipe | Grid | Suite, folder: Path) -> dict[Path, Recipe]:
    """Return, by run folder, the recipes that can start at once because they do not start from another recipe."""
    if isinstance(recipe, Suite):
        independent = {name: member for name, member in recipe.recipes.items() if name not in recipe.start_from}
        recipe = replace(recipe, recipes=independent)
    return recipes_by_folder(recipe, folder)
