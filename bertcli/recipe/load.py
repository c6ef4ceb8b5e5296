"""From a name or file, and `key=value` words, to a typed recipe; or all that is wrong with them, at once."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

import bertcli
from bertcli.errors import RecipeError, did_you_mean
from bertcli.recipe.error_messages import describe_problem, misplaced_words
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.yaml_layers import COMMAND_LINE, Keys, Layer, overlay, read_file, read_overrides
from bertcli.tasks import TASKS, task_named
from bertcli.tasks.task import Task


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name (`glue/sst2`) or a YAML file, with `key=value` overrides.

    Precedence: defaults, the file it `extends`, the file, the command line. Relative paths under `task.files` start
    at the folder of the file they stand in (on the command line: at the current folder); `task.dataset` and
    `model.name` are names first, so they are kept as they are.

    Raises:
        RecipeError: with every mistake found, each as `file:line: found … expected …`.
    """
    recipe = resolve(read_finetuning(name_or_path), overrides)
    assert isinstance(recipe, Recipe)
    return recipe


def read_finetuning(name_or_path: str) -> Layer:
    """The layer of a recipe that says a task.

    Raises:
        RecipeError: there is no such recipe, or it is of another kind.
    """
    layer = read_chain(find_recipe(name_or_path), Recipe)
    _refuse(layer, "suite", f"{name_or_path} is a suite; name one of its recipes here")
    _refuse(layer, "corpus", f"{name_or_path} is a recipe for `bertcli pretrain`, expected one with a task")
    return layer


def load_pretrain_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """The pretraining recipe of a shipped name (`pretrain/tiny`) or a YAML file; all as `load_recipe` does it.

    Relative paths under `corpus.sources` start at the folder of the file they stand in.

    Raises:
        RecipeError: with every mistake found, each as `file:line: found … expected …`.
    """
    layer = read_chain(find_recipe(name_or_path), PretrainRecipe)
    _refuse(layer, "task", f"{name_or_path} is a recipe for `bertcli finetune`, expected one with a corpus")
    recipe = resolve(layer, overrides)
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def load_any_recipe(name_or_path: str) -> Recipe | PretrainRecipe:
    """The recipe of a shipped name or a YAML file, of whichever kind it is.

    Raises:
        RecipeError: with every mistake found.
    """
    return (load_pretrain_recipe if is_pretraining(name_or_path) else load_recipe)(name_or_path)


def is_pretraining(name_or_path: str) -> bool:
    """Whether a recipe is one for `bertcli pretrain`."""
    return "corpus" in read_chain(find_recipe(name_or_path), Recipe).values


def _refuse(layer: Layer, key: str, words: str) -> None:
    """Raise `RecipeError` if the recipe has a top-level key that tells it to be of another kind."""
    if key in layer.values:
        raise RecipeError([f"{layer.place((key,))}: {words}"])


def resolve(layer: Layer, overrides: Sequence[str]) -> Recipe | PretrainRecipe:
    """The recipe of a layer with `key=value` overrides.

    Raises:
        RecipeError: with every mistake found.
    """
    problems = [*layer.problems, *lay_over(layer, overrides)]
    if problems and not layer.values:
        raise RecipeError(problems)
    recipe, found = _validate(layer)
    if problems or found or recipe is None:
        raise RecipeError(problems + found)
    return recipe


def lay_over(layer: Layer, overrides: Sequence[str]) -> list[str]:
    """Put `key=value` words over a layer, in place; what is wrong with them."""
    problems: list[str] = []
    for word in overrides:
        above = read_overrides([word], layer.root)
        _anchor_files(above, Path.cwd())
        wrong = above.problems or _keys_under_a_value(layer, word)
        problems += wrong
        if not wrong:
            overlay(layer, above)
    return problems


def dump_recipe(recipe: Recipe | PretrainRecipe) -> str:
    """The resolved recipe as YAML text that `load_recipe` reads back to an equal recipe."""
    yaml = YAML()
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    buffer = io.StringIO()
    yaml.dump(_plain(recipe.model_dump()), buffer)
    return buffer.getvalue()


def recipe_task(recipe: Recipe) -> Task:
    """The recipe's task row, shipped or its own."""
    return task_named(recipe.task) if isinstance(recipe.task, str) else recipe.task


def shipped_recipes_folder() -> Path:
    """The folder of the shipped recipes: inside the package once installed, beside it in a checkout."""
    package = Path(bertcli.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The shipped recipes by short name."""
    folder = shipped_recipes_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(name_or_path: str, beside: Path = Path()) -> Path:
    """The file of a short name, or the path itself, seen from the folder `beside`.

    Raises:
        RecipeError: there is no such recipe.
    """
    path = beside / name_or_path
    if os.path.isfile(path):  # unlike Path.is_file, false for a path too long or not allowed
        return path
    known = shipped_recipes()
    if name_or_path in known:
        return known[name_or_path]
    if os.path.isdir(path):
        raise RecipeError([f"found the folder {name_or_path!r}, expected a recipe file or one of: {', '.join(known)}"])
    files = [str(Path(name_or_path).with_name(file.name)) for file in path.parent.glob("*.yaml")]
    cure = did_you_mean(name_or_path, [*files, *known]) or " `bertcli recipes list` shows the shipped ones."
    raise RecipeError([f"found no recipe {name_or_path!r}, expected a YAML file or a shipped name.{cure}"])


def read_chain(path: Path, root: type[BaseModel], children: tuple[Path, ...] = ()) -> Layer:
    """The layer of a file over the ones it extends; what is wrong with them is in its `problems`."""
    layer = read_file(path, root)
    _anchor_files(layer, path.parent)
    parent = layer.values.pop("extends", None)
    if parent is None:
        return layer
    place = layer.place(("extends",))
    if not isinstance(parent, str):
        layer.problems.append(f"{place}: found {parent!r} for extends, expected a recipe's name or path")
        return layer
    try:
        parent_path = find_recipe(parent, path.parent)
    except RecipeError as error:
        layer.problems += [f"{place}: {problem}" for problem in error.problems]
        return layer
    if parent_path.resolve() in [child.resolve() for child in (*children, path)]:
        layer.problems.append(f"{place}: {parent} extends this recipe in turn; one of them must stand alone")
        return layer
    below = read_chain(parent_path, root, (*children, path))
    overlay(below, layer)
    below.problems += layer.problems
    below.places[()] = layer.places[()]
    return below


def _keys_under_a_value(layer: Layer, word: str) -> list[str]:
    """What is wrong with a `key=value` whose key goes on below something that is no section, such as a task's name."""
    keys = word.partition("=")[0].split(".")
    value: Any = layer.values
    for end, key in enumerate(keys[:-1], start=1):
        value = value.get(key)
        if value is None:
            return []
        if not isinstance(value, dict):
            section, place = ".".join(keys[:end]), layer.place(tuple(keys[:end]))
            found = f"{COMMAND_LINE}: found key {'.'.join(keys)}"
            return [f"{found}, expected {section} to be a section, but it is {value!r} ({place})"]
    return []


def _anchor_files(layer: Layer, folder: Path) -> None:
    """Let relative paths under `task.files` and `corpus.sources` start at `folder`; from here on they are absolute."""

    def anchor(section: dict[str, Any], key: str) -> None:
        paths = section[key]
        if isinstance(paths, str):
            section[key] = str(folder.resolve() / paths)
        elif isinstance(paths, list):
            section[key] = [str(folder.resolve() / path) if isinstance(path, str) else path for path in paths]

    task, corpus = layer.values.get("task"), layer.values.get("corpus")
    files: Any = task.get("files") if isinstance(task, dict) else None
    for split in files if isinstance(files, dict) else ():
        anchor(files, split)
    sources: Any = corpus.get("sources") if isinstance(corpus, dict) else None
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict) and "files" in source:
            anchor(source, "files")


def _validate(layer: Layer) -> tuple[Recipe | PretrainRecipe | None, list[str]]:
    """The recipe of merged values, or None with every problem in the words of `describe_problem`."""
    values = dict(layer.values)
    if layer.root is PretrainRecipe:
        pretraining, found = validated(PretrainRecipe, values, layer, ())
        return (pretraining if isinstance(pretraining, PretrainRecipe) else None), found
    problems: list[str] = []
    task: Any = values.get("task")
    if isinstance(task, dict):
        row, problems = validated(Task, task, layer, ("task",))
        values["task"] = next(iter(TASKS))  # the row is checked by itself, so that its mistakes read plainly
        recipe, others = validated(Recipe, values, layer, ())
        if isinstance(recipe, Recipe) and isinstance(row, Task):
            return recipe.model_copy(update={"task": row}), others
        return None, problems + others
    if "task" not in values:
        problems.append(f"{layer.place(())}: found no task, expected `task:` with a row's name or a row of your own")
    elif not isinstance(task, str):
        problems.append(
            f"{layer.place(('task',))}: found {task!r} for task, expected a row's name or a row of your own"
        )
    elif task not in TASKS:
        cure = did_you_mean(task, TASKS) or f" Known: {', '.join(TASKS)}."
        problems.append(f"{layer.place(('task',))}: found task {task!r}, expected the name of a task row.{cure}")
    if problems:
        values["task"] = next(iter(TASKS))
    recipe, others = validated(Recipe, values, layer, ())
    return (recipe if isinstance(recipe, Recipe) else None), problems + others


def validated(
    model: type[BaseModel], values: dict[str, Any], layer: Layer, prefix: Keys
) -> tuple[BaseModel | None, list[str]]:
    """A checked section, or None with every problem at its place."""
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        problems: dict[str, None] = {}  # an ordered set: a union's branches give one line
        for found in error.errors(include_url=False):
            if found["type"] == "too_short" and len(found["input"]) >= found["ctx"]["min_length"]:
                continue  # pydantic does not count the wrong values, and each of those has its own line
            keys = (*prefix, *found["loc"])
            place = layer.place(keys)
            if found["type"] == "extra_forbidden":
                problems[f"{place}: {misplaced_words(layer.root if prefix else model, keys)}"] = None
            else:
                problems[f"{place}: {describe_problem(keys, dict(found))}"] = None
        return None, list(problems)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        flow = CommentedSeq(_plain(inner) for inner in value)
        flow.fa.set_flow_style()
        return flow
    if isinstance(value, str) and "\x85" in value:
        return DoubleQuotedScalarString(value)  # elsewhere a YAML reader takes it for the end of a line
    return value
