"""A suite: several recipes run one after the other, with what they share laid over each of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from bertcli.errors import RecipeError, did_you_mean
from bertcli.recipe.expansion import Grid, load_recipe_or_grid, resolve_grid
from bertcli.recipe.load import find_recipe, read_chain, validated
from bertcli.recipe.schema import Recipe
from bertcli.recipe.yaml_layers import Layer, overlay, read_overrides
from bertcli.tasks.task import Names, Section

OWN_KEYS = ("suite", "start_from", "together")
TOGETHER_ALIKE = ("model", "training", "evaluation", "hardware")  # sections of recipes that are learned together


class Mixing(Section):
    """How the steps are divided among tasks that one encoder learns together."""

    kind: Literal["proportional", "equal", "temperature"] = Field(
        "proportional", description="by the number of training rows, all alike, or by its root"
    )
    cap: int | None = Field(16384, ge=1, description="training rows of a task that count at most; null: all")
    temperature: float = Field(2.0, ge=1, description="which root: 1 is proportional, larger ones come nearer to equal")


class SuiteKeys(Section):
    """The keys a suite has beside those of a recipe, which go over each of its recipes."""

    suite: Names = Field(min_length=1, description="recipes to run, by short name or path")
    start_from: dict[str, str] | None = Field(
        None, description="recipe → recipe of the suite (or finished run) whose encoder it starts from"
    )
    together: Mixing | None = Field(None, description="one encoder learns all of them at once, each with its own head")


@dataclass(frozen=True)
class Suite:
    """Recipes by name, in the order they run: one that others start from comes before them."""

    recipes: dict[str, Recipe | Grid]
    start_from: dict[str, str]
    together: Mixing | None = None


def load_finetuning(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe | Grid | Suite:
    """All that `bertcli finetune` takes: a recipe, a grid of them, or a suite.

    Raises:
        RecipeError: with every mistake found.
    """
    return load_suite(name_or_path, overrides) or load_recipe_or_grid(name_or_path, overrides)


def load_suite(name_or_path: str, overrides: Sequence[str] = ()) -> Suite | None:
    """The suite of a shipped name (`glue`) or a YAML file; None if it is no suite but a recipe.

    Precedence: the recipe, the suite's sections, the command line. `suite=[cola, rte]` runs a part of it.

    Raises:
        RecipeError: with every mistake found, each as `file:line: found … expected …`.
    """
    path = find_recipe(name_or_path)
    layer = read_chain(path, Recipe)
    if "suite" not in layer.values:
        return None
    all_names = layer.values["suite"]
    own = read_overrides([word for word in overrides if word.partition("=")[0].split(".")[0] in OWN_KEYS], Recipe)
    problems = [*layer.problems, *own.problems]
    overlay(layer, own)
    shared = Layer(Recipe, {key: value for key, value in layer.values.items() if key not in OWN_KEYS}, layer.places)
    keys, found = validated(SuiteKeys, {key: layer.values[key] for key in OWN_KEYS if key in layer.values}, layer, ())
    problems += found
    if not isinstance(keys, SuiteKeys):
        raise RecipeError(problems)
    short = {name.rpartition("/")[2]: name for name in all_names}
    names = [short.get(name, name) for name in keys.suite]
    start_from = {short.get(a, a): short.get(b, b) for a, b in (keys.start_from or {}).items()}
    unknown = [name for name in start_from if name not in [short.get(one, one) for one in all_names]]
    problems += [
        f"found start_from for {name!r}, expected one of {names}.{did_you_mean(name, short)}" for name in unknown
    ]
    rest = [word for word in overrides if word.partition("=")[0].split(".")[0] not in OWN_KEYS]
    recipes: dict[str, Recipe | Grid] = {}
    for name in names:
        try:
            member = read_chain(find_recipe(name, path.parent), Recipe)
            overlay(member, copy.deepcopy(shared))
            recipes[name] = resolve_grid(member, rest)
        except RecipeError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    problems += _in_one_folder(names)
    if keys.together is not None and not problems:
        problems += _apart(recipes, start_from)
    if problems:
        raise RecipeError(problems)
    order = list(_sources_first(list(recipes), start_from))
    return Suite({name: recipes[name] for name in order}, start_from, keys.together)


def _apart(recipes: dict[str, Recipe | Grid], start_from: dict[str, str]) -> list[str]:
    """What keeps recipes from being learned together."""
    problems = ["found start_from beside together: what is learned at once starts from one model"] * bool(start_from)
    if any(isinstance(recipe, Grid) for recipe in recipes.values()):
        return [*problems, "found a list under training beside together: give one value"]
    plain = {name: recipe for name, recipe in recipes.items() if isinstance(recipe, Recipe)}
    for section in TOGETHER_ALIKE:
        for key in type(getattr(next(iter(plain.values())), section)).model_fields:
            values = {name: getattr(getattr(recipe, section), key) for name, recipe in plain.items()}
            if len({repr(value) for value in values.values()}) > 1:
                found = ", ".join(f"{value} ({name})" for name, value in values.items())
                problems.append(
                    f"found {section}.{key} {found}; what is learned together needs one: give it in the suite"
                )
    return problems


def _in_one_folder(names: list[str]) -> Iterator[str]:
    """What is wrong with recipes whose runs would be in one folder."""
    owners: dict[Path, str] = {}
    for name in dict.fromkeys(names):
        folder = run_folder(Path(), name)
        if folder in owners:
            yield f"found {owners[folder]} and {name}, whose runs would both be in {folder}: rename one of them"
        owners.setdefault(folder, name)


def run_folder(folder: Path, name: str) -> Path:
    """Where the recipe `name` of a suite runs."""
    return folder / Path(name).with_suffix("").as_posix().strip("./").replace("/", "-")


def _sources_first(names: list[str], start_from: dict[str, str]) -> Iterator[str]:
    """The names in their order, but none before the one it starts from.

    Raises:
        RecipeError: some start from each other.
    """
    waiting = list(names)
    while waiting:
        ready = next((name for name in waiting if start_from.get(name) not in waiting), None)
        if ready is None:
            raise RecipeError([f"found {', '.join(waiting)} starting from each other in start_from"])
        waiting.remove(ready)
        yield ready


def singles(wanted: Suite | Grid) -> dict[str, Recipe]:
    """Every recipe of a suite or a grid by a name of its own."""
    if isinstance(wanted, Grid):
        return wanted.points
    found: dict[str, Recipe] = {}
    for name, member in wanted.recipes.items():
        if isinstance(member, Grid):
            found |= {f"{name},{point}": recipe for point, recipe in member.points.items()}
        else:
            found[name] = member
    return found


def single_runs(wanted: Suite | Grid, folder: Path) -> dict[Path, Recipe]:
    """Every recipe of a suite or a grid by the run folder it has in `folder`."""
    if isinstance(wanted, Grid):
        return {folder / point: recipe for point, recipe in wanted.points.items()}
    found: dict[Path, Recipe] = {}
    for name, member in wanted.recipes.items():
        own = run_folder(folder, name)
        found |= single_runs(member, own) if isinstance(member, Grid) else {own: member}
    return found


def ready_runs(wanted: Suite | Grid, folder: Path) -> dict[Path, Recipe]:
    """Those of its `single_runs` that wait for no other: they can go on at once."""
    if isinstance(wanted, Suite):
        alone = {name: member for name, member in wanted.recipes.items() if name not in wanted.start_from}
        wanted = replace(wanted, recipes=alone)
    return single_runs(wanted, folder)
