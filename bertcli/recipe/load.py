"""Load a typed recipe from a name or file and `key=value` overrides, or report all errors at once."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

import bertcli
from bertcli.errors import MAX_PROBLEMS, RecipeError, did_you_mean, quoted, shortened
from bertcli.recipe.error_messages import describe_problem, describe_unknown_key
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.yaml_layers import (
    COMMAND_LINE,
    DATA_SUFFIXES,
    KeyPath,
    RecipeLayer,
    merge_layers,
    parse_overrides,
    read_yaml_file,
)
from bertcli.tasks import TASKS, get_task
from bertcli.tasks.task import SPLITS, FoldTask, Task

FORMER_RECIPES = {  # former name of a built-in recipe → current name
    "ner/own-conll": "ner/custom-conll",
    "sentiment/own-csv": "sentiment/custom-csv",
    "strategies/distil": "strategies/distillation",
    "strategies/fresh-top": "strategies/reinit-layers",
    "strategies/together": "strategies/multitask",
}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a fine-tuning recipe by built-in name (`glue/sst2`) or from a YAML file, with `key=value` overrides.

    Of a search, which has one recipe per trial, this is the recipe without its section `search`.

    Precedence, lowest first: defaults, the file that it `extends`, the file, the command line. Relative paths under
    `task.files`, or of `model.add_tokens`, are resolved against the folder of the file that contains them (on the
    command line: the current folder); `task.dataset` and `model.name` may be Hub IDs, so they are kept as given.

    Raises:
        RecipeError: if the recipe is invalid; the message lists every error as `file:line: found … expected …`.
    """
    layer = read_finetune_recipe(name_or_path)
    layer.values.pop("search", None)
    recipe = resolve_recipe(layer, overrides)
    assert isinstance(recipe, Recipe)
    return recipe


def read_finetune_recipe(name_or_path: str) -> RecipeLayer:
    """Read a fine-tuning recipe without validating its values.

    Raises:
        RecipeError: if the recipe does not exist, or is a suite or a pretraining recipe.
    """
    layer = read_with_extends(find_recipe(name_or_path), Recipe)
    _reject_key(layer, "suite", f"{name_or_path} is a suite, expected a single recipe; specify one of its recipes")
    _reject_key(layer, "corpus", f"{name_or_path} is a recipe for `bertcli pretrain`, expected one with a task")
    return layer


def load_pretrain_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """Load a pretraining recipe by built-in name (`pretrain/tiny`) or from a YAML file, like `load_recipe`.

    Relative paths under `corpus.sources`, or of `tokenizer.add_tokens`, are resolved against the folder of the file
    that contains them.

    Raises:
        RecipeError: if the recipe is invalid; the message lists every error as `file:line: found … expected …`.
    """
    layer = read_with_extends(find_recipe(name_or_path), PretrainRecipe)
    _reject_key(layer, "task", f"{name_or_path} is a recipe for `bertcli finetune`, expected one with a corpus")
    recipe = resolve_recipe(layer, overrides)
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def load_single_recipe(name_or_path: str) -> Recipe | PretrainRecipe:
    """Load the recipe of one run, for fine-tuning or pretraining, by built-in name or from a YAML file.

    Raises:
        RecipeError: if the recipe is invalid; the message lists every error.
    """
    return (load_pretrain_recipe if is_pretraining(name_or_path) else load_recipe)(name_or_path)


def is_pretraining(name_or_path: str) -> bool:
    """Return whether a recipe is for `bertcli pretrain`."""
    return "corpus" in read_with_extends(find_recipe(name_or_path), Recipe).values


def _reject_key(layer: RecipeLayer, key: str, message: str) -> None:
    """Raise `RecipeError` if there is a top-level key that marks a different kind of recipe."""
    if key in layer.values:
        raise RecipeError([f"{layer.location((key,))}: {message}"])


def resolve_recipe(layer: RecipeLayer, overrides: Sequence[str]) -> Recipe | PretrainRecipe:
    """Merge `key=value` overrides into a partial recipe and validate it.

    Raises:
        RecipeError: if the recipe is invalid; the message lists every error.
    """
    problems = [*layer.problems, *apply_overrides(layer, overrides)]
    if problems and not layer.values:
        raise RecipeError(problems)
    recipe, validation_problems = _validate_recipe(layer)
    if problems or validation_problems or recipe is None:
        raise RecipeError(problems + validation_problems)
    return recipe


def apply_overrides(layer: RecipeLayer, overrides: Sequence[str]) -> list[str]:
    """Merge `key=value` arguments into a partial recipe, in place; return error messages."""
    problems: list[str] = []
    for argument in overrides:
        override = parse_overrides([argument], layer.schema)
        _make_file_paths_absolute(override, Path.cwd())
        errors = override.problems or _non_section_parent(layer, argument)
        problems += errors
        if not errors:
            merge_layers(layer, override)
    return problems


def dump_recipe(recipe: Recipe | PretrainRecipe) -> str:
    """Return the resolved recipe as YAML text, which `load_recipe` loads back to an equal recipe."""
    return dump_values(recipe.model_dump())


def dump_values(values: dict[str, Any]) -> str:
    """Return plain values as YAML; tuples become lists on one line."""
    return _dump_pickled(pickle.dumps(values))  # pickled: dictionaries cannot be keys of a cache


@lru_cache(maxsize=512)  # a run writes its recipe several times, and the recipes of a grid have most keys in common
def _dump_pickled(values: bytes) -> str:
    return to_yaml(to_yaml_value(pickle.loads(values)))


def to_yaml(value: Any) -> str:
    """Return plain values as YAML, without line wrapping and with an explicit `null`."""
    yaml = YAML()
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    buffer = io.StringIO()
    yaml.dump(value, buffer)
    return buffer.getvalue()


def recipe_task(recipe: Recipe) -> Task:
    """Return the recipe's task: a built-in definition, or the inline definition in the recipe.

    For one fold of a cross-validation, it is a `FoldTask`.
    """
    task, data = get_task(recipe.task) if isinstance(recipe.task, str) else recipe.task, recipe.data
    if data.fold is None or data.folds is None:
        return task
    return FoldTask(**dict(task), num_folds=data.folds, fold=data.fold)


def shipped_recipes_folder() -> Path:
    """Return the folder of the built-in recipes: inside the package if installed, next to it in a checkout."""
    package = Path(bertcli.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Return the paths of the built-in recipes by name."""
    folder = shipped_recipes_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(name_or_path: str, base_folder: Path = Path()) -> Path:
    """Return the file of a recipe, given by built-in name or by a path relative to `base_folder`.

    Raises:
        RecipeError: if the recipe does not exist.
    """
    path = base_folder / name_or_path
    if os.path.isfile(path):  # unlike Path.is_file, False for a path that is too long or not accessible
        return path
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    if os.path.isdir(path):
        found = f"found the folder {quoted(name_or_path)}"
        if any(file.suffix.lower() in DATA_SUFFIXES for file in path.iterdir()):
            raise RecipeError([f"{found}, which has data. Create a recipe for it with `bertcli init {name_or_path}`."])
        raise RecipeError([f"{found}, expected a recipe file or one of: {', '.join(shipped)}"])
    if (renamed := FORMER_RECIPES.get(name_or_path)) is not None:
        raise RecipeError([f"found no recipe {quoted(name_or_path)}, which is now called {renamed}"])
    files = [str(Path(name_or_path).with_name(file.name)) for file in path.parent.glob("*.yaml")]
    cure = (
        did_you_mean(name_or_path, [*files, *shipped], are_paths=True)
        or " `bertcli recipes list` lists the built-in recipes."
    )
    raise RecipeError([f"found no recipe {quoted(name_or_path)}, expected a YAML file or a built-in name.{cure}"])


def read_with_extends(path: Path, schema: type[BaseModel], children: tuple[Path, ...] = ()) -> RecipeLayer:
    """Read a file and merge it into the files that it extends; errors are collected in `problems` of the result.

    Raises:
        RecipeError: if one of the files contains data, not a recipe.
    """
    layer = read_yaml_file(path, schema)
    _make_file_paths_absolute(layer, path.parent)
    parent = layer.values.pop("extends", None)
    if parent is None:
        return layer
    location = layer.location(("extends",))
    if not isinstance(parent, str):
        layer.problems.append(f"{location}: found {quoted(parent)} for extends, expected a recipe's name or path")
        return layer
    try:
        parent_path = find_recipe(parent, path.parent)
    except RecipeError as error:
        layer.problems += [f"{location}: {problem}" for problem in error.problems]
        return layer
    if parent_path.resolve() in [child.resolve() for child in (*children, path)]:
        layer.problems.append(f"{location}: {parent} in turn extends this recipe; remove one `extends` from the cycle")
        return layer
    try:
        base = read_with_extends(parent_path, schema, (*children, path))
    except RecipeError as error:
        raise RecipeError(f"{location}: {problem}" for problem in error.problems) from error
    merge_layers(base, layer)
    base.problems += layer.problems
    base.locations[()] = layer.locations[()]
    return base


def _non_section_parent(layer: RecipeLayer, argument: str) -> list[str]:
    """Return an error if a parent key in `key=value` is not a section, such as `task` set to a task's name."""
    keys = argument.partition("=")[0].split(".")
    value: Any = layer.values
    for end, key in enumerate(keys[:-1], start=1):
        value = value.get(key)
        if value is None:
            return []
        if not isinstance(value, dict):
            section, location = ".".join(keys[:end]), layer.location(tuple(keys[:end]))
            found = f"{COMMAND_LINE}: found key {shortened('.'.join(keys))}"
            return [f"{found}, expected {section} to be a section, but it is {quoted(value)} ({location})"]
    return []


def _make_file_paths_absolute(layer: RecipeLayer, folder: Path) -> None:
    """Resolve relative paths under `task.files`, `corpus.sources` and `add_tokens` against `folder`, in place."""

    def resolve(section: dict[str, Any], key: str) -> None:
        paths = section[key]
        if isinstance(paths, str):
            section[key] = str(folder.resolve() / paths)
        elif isinstance(paths, list):
            section[key] = [str(folder.resolve() / path) if isinstance(path, str) else path for path in paths]

    task, corpus = layer.values.get("task"), layer.values.get("corpus")
    files: Any = task.get("files") if isinstance(task, dict) else None
    for split in SPLITS if isinstance(files, dict) else ():
        if split in files:
            resolve(files, split)
    sources: Any = corpus.get("sources") if isinstance(corpus, dict) else None
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict) and "files" in source:
            resolve(source, "files")
    for name in ("model", "tokenizer"):
        section = layer.values.get(name)
        if isinstance(section, dict) and isinstance(section.get("add_tokens"), str):  # a list has tokens, not paths
            resolve(section, "add_tokens")


def _validate_recipe(layer: RecipeLayer) -> tuple[Recipe | PretrainRecipe | None, list[str]]:
    """Validate merged values; return the recipe, or None and one message per error."""
    values = dict(layer.values)
    if layer.schema is PretrainRecipe:
        pretraining, problems = validate_section(PretrainRecipe, values, layer, ())
        return (pretraining if isinstance(pretraining, PretrainRecipe) else None), problems
    problems = []
    task: Any = values.get("task")
    if isinstance(task, dict):
        row, problems = validate_section(Task, task, layer, ("task",))
        if isinstance(row, Task) and (problem := row.head_class.find_problem(row)) is not None:
            problems.append(f"{layer.location(('task',))}: in task: {problem}")
        values["task"] = next(iter(TASKS))  # the task is validated separately, for readable messages
        recipe, recipe_problems = validate_section(Recipe, values, layer, ())
        if isinstance(recipe, Recipe) and isinstance(row, Task) and not problems:
            return recipe.model_copy(update={"task": row}), recipe_problems
        return None, problems + recipe_problems
    expected = "expected the name of a task definition or an inline definition"
    if "task" not in values:
        problems.append(f"{layer.location(())}: found no task, {expected} under `task:`")
    elif not isinstance(task, str):
        problems.append(f"{layer.location(('task',))}: found {quoted(task)} for task, {expected}")
    elif task not in TASKS:
        cure = did_you_mean(task, TASKS) or f" Known: {', '.join(TASKS)}."
        problems.append(
            f"{layer.location(('task',))}: found task {quoted(task)}, expected the name of a task definition.{cure}"
        )
    if problems:
        values["task"] = next(iter(TASKS))
    recipe, recipe_problems = validate_section(Recipe, values, layer, ())
    return (recipe if isinstance(recipe, Recipe) else None), problems + recipe_problems


def validate_section(
    model: type[BaseModel], values: dict[str, Any], layer: RecipeLayer, prefix: KeyPath
) -> tuple[BaseModel | None, list[str]]:
    """Validate a section; return the section, or None and one message with a location per error.

    Args:
        model: the section's schema.
        values: the section's values.
        layer: the partial recipe that the values come from, for the locations.
        prefix: the key path of the section in the recipe.
    """
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        problems: dict[str, None] = {}  # an ordered set: all branches of a union yield the same message
        for details in error.errors(include_url=False):
            if details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]:
                continue  # pydantic does not count invalid items, and each of them has its own message
            keys = (*prefix, *details["loc"])
            location = layer.location(keys)
            if details["type"] == "extra_forbidden":
                schema = layer.schema if prefix else model
                suggest = len(problems) < MAX_PROBLEMS  # further problems are not shown
                problems[f"{location}: {describe_unknown_key(schema, keys, details['input'], suggest=suggest)}"] = None
            else:
                problems[f"{location}: {describe_problem(keys, dict(details))}"] = None
        return None, list(problems)


def to_yaml_value(value: Any) -> Any:
    """Convert a plain value for `to_yaml`: tuples become lists on one line."""
    if isinstance(value, dict):
        return {key: to_yaml_value(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        flow = CommentedSeq(to_yaml_value(inner) for inner in value)
        flow.fa.set_flow_style()
        return flow
    if isinstance(value, str) and "\x85" in value:
        return DoubleQuotedScalarString(value)  # unquoted, YAML readers treat \x85 as a line break
    return value
