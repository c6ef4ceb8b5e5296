"""Searches: `search:` gives ranges or choices for keys of `training`, from which each trial draws its values."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import Field

from bertcli.errors import RecipeError, did_you_mean, quoted
from bertcli.recipe.error_messages import find_key
from bertcli.recipe.load import dump_recipe, resolve_recipe, to_yaml, to_yaml_value, validate_section
from bertcli.recipe.schema import Count, Duration, Recipe, TrainingSection, parse_seconds
from bertcli.recipe.yaml_layers import COMMAND_LINE, RecipeLayer
from bertcli.tasks.task import Section

Kind = Literal["uniform", "log_uniform", "int", "choice"]
KINDS = get_args(Kind)
FIXED_KEYS = ("seed",)  # keys of `training` that are not searched; a list of seeds means several runs, not a grid
EXPECTED = "{uniform: [low, high]}, {log_uniform: [low, high]}, {int: [low, high]} or {choice: [a, b, …]}"


class SearchSection(Section):
    """Find good values for keys of `training`, each in its range: one run per trial, the best one is selected."""

    trials: Count = Field(20, ge=1, description="number of trials, including those of earlier commands")
    budget: Duration | None = Field(
        None, description="start no more trials after they have taken this much time together, such as 30m or 2h"
    )


@dataclass(frozen=True)
class Distribution:
    """Values to draw from: `low` and `high` of a range, both inclusive, or the listed values of a `choice`."""

    kind: Kind
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Search:
    """A recipe and the distributions of some keys of `training`.

    Attributes:
        base: the recipe of every trial, except for the values of these keys.
        space: distributions by key of `training`.
        settings: the number of trials and the budget.
    """

    base: Recipe
    space: dict[str, Distribution]
    settings: SearchSection

    @property
    def representative(self) -> Recipe:
        """The recipe of every trial except for the keys in `space`."""
        return self.base

    @property
    def budget_seconds(self) -> float | None:
        """The total time of trials after which no more are started."""
        return parse_seconds(self.settings.budget)

    def trial_recipe(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe of a trial with these values of the keys in `space`."""
        training = TrainingSection.model_validate(self.base.training.model_dump() | dict(values))
        return self.base.model_copy(update={"training": training})

    def probes(self) -> Iterator[Recipe]:
        """Yield recipes that together have each choice and each end of a range."""
        for key, distribution in self.space.items():
            for value in distribution.values:
                yield self.trial_recipe({key: value})


def dump_search(search: Search) -> str:
    """Return the search as YAML text, which `load_search` loads back to an equal search."""
    section = search.settings.model_dump() | space_values(search)
    return dump_recipe(search.base) + to_yaml({"search": to_yaml_value(section)})


def space_values(search: Search) -> dict[str, Any]:
    """Return the distributions of a search as they are written in `search`."""
    return {key: {distribution.kind: distribution.values} for key, distribution in search.space.items()}


def search_schema() -> dict[str, Any]:
    """Return the JSON Schema of the section `search`."""
    value: dict[str, Any] = {"type": ["string", "number", "boolean", "null"]}
    options = []
    for kind in KINDS:
        numbers = {"type": "integer" if kind == "int" else "number"}
        items = (
            {"items": value, "minItems": 1} if kind == "choice" else {"items": numbers, "minItems": 2, "maxItems": 2}
        )
        options.append({"properties": {kind: {"type": "array", **items}}, "required": [kind]})
    distribution = {"type": ["object", "null"], "anyOf": [*options, {"type": "null"}]}
    keys = {
        name: distribution | {"description": field.description}
        for name, field in TrainingSection.model_fields.items()
        if name not in FIXED_KEYS
    }
    section = SearchSection.model_json_schema()
    return section | {"properties": section["properties"] | keys}


def resolve_search(layer: RecipeLayer) -> Search:
    """Validate a partial recipe that has `search`, including the recipes at both ends of every range.

    Raises:
        RecipeError: if it is invalid; the message lists every error.
    """
    layer = copy.deepcopy(layer)
    section = layer.values.pop("search")
    if not isinstance(section, dict):
        raise RecipeError([f"{layer.location(('search',))}: found {quoted(section)} for search, expected a section"])
    settings_values = {key: value for key, value in section.items() if key in SearchSection.model_fields}
    settings, problems = validate_section(SearchSection, settings_values, layer, ("search",))
    space: dict[str, Distribution] = {}
    for key, value in section.items():
        if key in settings_values or value is None:
            continue
        distribution = _parse(key, value)
        if isinstance(distribution, Distribution):
            space[key] = distribution
        else:
            problems.append(f"{layer.location(('search', key))}: {distribution}")
    if not space and not problems:
        problems.append(f"{layer.location(('search',))}: found no key of training in search, expected {EXPECTED}")
    problems += _conflicts(layer, space)
    if isinstance(training := layer.values.get("training"), dict):  # without lists, which have been reported
        layer.values["training"] = {key: value for key, value in training.items() if not is_grid_list(key, value)}
    try:
        base = resolve_recipe(copy.deepcopy(layer), [])
    except RecipeError as error:
        raise RecipeError([*problems, *error.problems]) from None
    assert isinstance(base, Recipe)
    if base.is_cross_validation:
        location = layer.location(("data", "folds"))
        problems.append(f"{location}: found data.folds in a search, whose trials are single runs; remove one of them")
    problems += _value_problems(layer, space)
    if problems:
        raise RecipeError(problems)
    assert isinstance(settings, SearchSection)
    return Search(base, space, settings)


def _parse(key: str, value: Any) -> Distribution | str:
    """Return the distribution of a key, or what is wrong with it."""
    names = [name for name in TrainingSection.model_fields if name not in FIXED_KEYS]
    if key not in names:
        alias = (find_key(key) or "").removeprefix("training.")
        cure = f" Did you mean {alias}?" if alias in names else did_you_mean(key, [*SearchSection.model_fields, *names])
        expected = f"{' and '.join(SearchSection.model_fields)}, and keys of training except {', '.join(FIXED_KEYS)}"
        return f"found key {quoted(key)} in section 'search', expected {expected}.{cure}"
    found = f"found {quoted(value)} for search.{key}"
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in KINDS:
        return f"{found}, expected {EXPECTED}"
    ((kind, values),) = value.items()
    if not isinstance(values, list) or not values or any(isinstance(item, list | dict) for item in values):
        return f"{found}, expected {EXPECTED}"
    if kind == "choice":
        is_distinct = len({repr(item) for item in values}) == len(values)
        return Distribution(kind, tuple(values)) if is_distinct else f"{found}, expected each value once"
    type_, kind_name = (int, "integers") if kind == "int" else (int | float, "numbers")
    if len(values) != 2 or any(isinstance(item, bool) or not isinstance(item, type_) for item in values):
        return f"{found}, expected two {kind_name}: the lowest and the highest value"
    low, high = values if kind == "int" else map(float, values)
    if not low < high:
        return f"{found}, expected the lower value first"
    if kind == "log_uniform" and low <= 0:
        return f"{found}, expected values greater than 0, or uniform instead of log_uniform"
    return Distribution(kind, (low, high))


def _conflicts(layer: RecipeLayer, space: Mapping[str, Distribution]) -> Iterator[str]:
    """Yield an error for each key of `training` that does not go with a search."""
    training = layer.values.get("training")
    for key, value in training.items() if isinstance(training, dict) else ():
        location, searched = layer.location(("training", key)), layer.location(("search", key))
        if is_grid_list(key, value):
            yield (
                f"{location}: found a list for training.{key}, which means a grid, and search "
                f"({layer.location(('search',))}); use one of them, such as search.{key}: {{choice: [a, b, …]}}"
            )
        elif key in space and location == COMMAND_LINE != searched:
            yield (
                f"{location}: found training.{key}, whose values are those of search.{key} ({searched}); leave it out, "
                f"or do not search for it: search.{key}=null"
            )


def is_grid_list(key: str, value: Any) -> bool:
    """Return whether a value of the key `key` of `training` is a list whose values are the points of a grid."""
    return isinstance(value, list) and key not in FIXED_KEYS


def _value_problems(layer: RecipeLayer, space: Mapping[str, Distribution]) -> list[str]:
    """Return the errors of the recipe with each choice and each end of a range, with their location in `search`."""
    problems: dict[str, None] = {}
    for key, distribution in space.items():
        for index, value in enumerate(distribution.values):
            probe = copy.deepcopy(layer)
            probe.values["training"] = {**(probe.values.get("training") or {}), key: value}
            probe.locations["training", key] = layer.location(("search", key, distribution.kind, index))
            try:
                resolve_recipe(probe, [])
            except RecipeError as error:
                problems |= dict.fromkeys(error.problems)
    return list(problems)
