"""Recipes as documents: list, show, check, compare and copy them, and generate a JSON Schema for editors."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from bertcli.errors import RecipeError, UsageError
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import (
    dump_recipe,
    dump_values,
    find_recipe,
    is_pretraining,
    load_pretrain_recipe,
    shipped_recipes,
    to_yaml,
    to_yaml_value,
)
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.search import FIXED_KEYS, Search, dump_search, search_schema, space_values
from bertcli.recipe.suite import Experiment, Suite, SuiteKeys, load_finetuning, recipes_by_name
from bertcli.tasks import TASKS

END_OF_SENTENCE = re.compile(r"(?<! al\.)(?<=[.?]) (?=[A-Z\d])")
EXPECTED = re.compile(r"# expected: (?P<score>.+?)(?: in (?P<time>[\d.]+ \w+))?(?: \((?P<conditions>.+)\))?")
NOT_MEASURED = "# expected: not measured"
SCHEMAS: dict[str, type[BaseModel]] = {"finetune": Recipe, "pretrain": PretrainRecipe}
YAML_INDENT = 2


def load_any(name_or_path: str, overrides: Sequence[str] = ()) -> PretrainRecipe | Experiment:
    """Load a recipe, grid, search or suite by built-in name, file or run folder, with `key=value` overrides.

    Raises:
        RecipeError: if the recipe is invalid; the message lists every error.
    """
    path = run_recipe_path(name_or_path)
    if is_pretraining(path):
        return load_pretrain_recipe(path, overrides)
    return load_finetuning(path, overrides)


def run_recipe_path(name_or_path: str) -> str:
    """Return the path of the recipe inside a run folder; return any other name or path unchanged."""
    inside = Path(name_or_path) / "recipe.yaml"
    return str(inside) if inside.is_file() else name_or_path


def list_recipes(words: Sequence[str] = ()) -> list[dict[str, str | None]]:
    """List the built-in recipes whose name or header contains all words: name, command, description, expected result.

    The expected result consists of `score`, `time` and `conditions`, each None if not measured.
    """
    recipes: list[dict[str, str | None]] = []
    for name, path in shipped_recipes().items():
        about = _header_text(path)
        if all(word.lower() in f"{name} {about}".lower() for word in words):
            verb = "pretrain" if name.startswith("pretrain/") else "finetune"
            description = {"recipe": name, "verb": verb, "about": END_OF_SENTENCE.split(about)[0].rstrip(".")}
            recipes.append(description | _expected_result(path))
    return recipes


def show_recipe(name_or_path: str, overrides: Sequence[str] = (), *, comments: bool = True) -> str:
    """Return the resolved recipe as YAML; for a suite or a grid, one document per recipe.

    Args:
        name_or_path: a built-in recipe, a file or a run folder.
        overrides: `key=value` arguments.
        comments: whether to add the description of each key as a comment.

    Raises:
        UsageError: if overrides are given for a multitask run, whose recipes cannot be changed.
    """
    path = Path(run_recipe_path(name_or_path))
    if str(path) != name_or_path and (text := path.read_text("utf-8")).startswith("suite:"):
        if overrides:
            raise UsageError(f"{name_or_path} is a multitask run, which is shown unchanged; leave out the overrides")
        return text
    dump = dump_annotated if comments else dump_recipe
    recipe = load_any(name_or_path, overrides)
    if isinstance(recipe, Search):
        return dump_search_annotated(recipe) if comments else dump_search(recipe)
    if not isinstance(recipe, Suite | Grid):
        return dump(recipe)
    return "---\n".join(f"# {name}\n{dump(member)}" for name, member in recipes_by_name(recipe).items())


def dump_annotated(recipe: BaseModel) -> str:
    """Return a recipe as YAML, with the description of each key as a comment; it loads back to an equal recipe."""
    return to_yaml(_annotate(recipe, 0)).lstrip("\n")


def dump_search_annotated(search: Search) -> str:
    """Return a search as YAML, like `dump_annotated`."""
    section = CommentedMap()
    section["search"] = _annotate(search.settings, 1)
    section["search"].update(to_yaml_value(space_values(search)))
    above = "\nRanges and choices for keys of `training`, from which each trial draws its values"
    section.yaml_set_comment_before_after_key("search", before=above)
    return dump_annotated(search.base) + to_yaml(section)


def _annotate(section: BaseModel, depth: int, *, comments: bool = True) -> CommentedMap:
    """Convert a section to a YAML mapping, with comments after values and above sections.

    Args:
        section: the section; its schema has the descriptions.
        depth: nesting depth, for the indentation of the comments above sections.
        comments: False for all but the first item of a list, to describe each key only once.
    """
    mapping = CommentedMap()
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        is_list = isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value)
        if isinstance(value, BaseModel):
            mapping[name] = _annotate(value, depth + 1, comments=comments)
        elif is_list:
            mapping[name] = CommentedSeq(
                _annotate(item, depth + 1, comments=comments and index == 0) for index, item in enumerate(value)
            )
        else:
            mapping[name] = to_yaml_value(value)
        if not comments or not field.description:
            continue
        if isinstance(value, BaseModel) or is_list or (isinstance(value, dict) and value):
            above = f"\n{_capitalized(field.description)}" if depth == 0 else field.description
            mapping.yaml_set_comment_before_after_key(name, before=above, indent=YAML_INDENT * depth)
        else:
            line = dump_values({name: value}).rstrip("\n")
            column = YAML_INDENT * depth + len(line) + 2  # two spaces before `#`
            mapping.yaml_add_eol_comment(field.description, name, column=column)
    return mapping


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def copy_recipe(name: str, target: Path, *, with_schema: bool = False) -> None:
    """Copy a recipe, including its comments, to a new file.

    Args:
        name: a built-in recipe or a YAML file.
        target: the new file.
        with_schema: also write the JSON Schema to `finetune.schema.json` or `pretrain.schema.json` in the same folder,
            and reference it in the first line of the copy, for editors.

    Raises:
        UsageError: if the file exists, or a different file exists at the schema's path.
    """
    text = find_recipe(name).read_text("utf-8")
    if with_schema:
        kind = "pretrain" if is_pretraining(name) else "finetune"
        schema = target.with_name(f"{kind}.schema.json")
        text = f"# yaml-language-server: $schema={schema.name}\n{text}"
        new_schema = schema_text(kind)
        if schema.exists() and schema.read_text("utf-8") != new_schema:
            raise UsageError(f"{schema} exists and is not this version's schema; move it or choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} already exists; choose another file") from None
    if with_schema:
        schema.write_text(new_schema, "utf-8")


def check_recipes(names: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the errors of each recipe; an empty list if it is valid."""
    problems: dict[str, list[str]] = {}
    for name in names:
        try:
            load_any(name, overrides)
            problems[name] = []
        except RecipeError as error:
            problems[name] = error.problems
    return problems


def compare_recipes(*names: str) -> list[tuple[str, ...]]:
    """Return each key in which recipes or runs differ, and its value in each of them; `-` if the key is absent."""
    return compare_recipe_texts(*map(_dump_single, names))


def compare_recipe_texts(*texts: str) -> list[tuple[str, ...]]:
    """Compare the YAML texts of resolved recipes, like `compare_recipes`."""
    if len(set(texts)) == 1:
        return []
    recipes = [dict(_flatten(YAML(typ="safe").load(io.StringIO(text)))) for text in texts]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = ((key, *(str(recipe.get(key, "-")) for recipe in recipes)) for key in keys)
    return [row for row in rows if len(set(row[1:])) > 1]


def schema_text(kind: str) -> str:
    """Return the JSON Schema of finetune or pretrain recipes as file content."""
    return json.dumps(json_schema(kind), indent=2) + "\n"


def json_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of finetune or pretrain recipes, generated from the typed recipe; no key is required.

    Raises:
        UsageError: if the kind is unknown.
    """
    if kind not in SCHEMAS:
        raise UsageError(f"found recipe kind {kind!r}, expected one of {', '.join(SCHEMAS)}")
    schema = SCHEMAS[kind].model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "recipe that this one extends"}
    if kind == "finetune":
        schema["properties"]["search"] = search_schema()
        suite = SuiteKeys.model_json_schema()
        schema["properties"] |= suite["properties"]
        schema["$defs"] |= suite["$defs"]
        training = schema["$defs"]["TrainingSection"]["properties"]
        training |= {key: _value_or_list(known) for key, known in training.items() if key not in FIXED_KEYS}
    for part in (schema, *schema["$defs"].values()):  # a required key may come from the extended recipe
        part.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _value_or_list(property_schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a key that accepts a value or, for a grid, a list of values."""
    annotations = ("title", "description", "default")
    value = {name: inner for name, inner in property_schema.items() if name not in annotations}
    kept = {name: inner for name, inner in property_schema.items() if name in annotations}
    return kept | {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}


def _dump_single(name: str) -> str:
    recipe = load_any(name)
    if isinstance(recipe, Suite):
        raise UsageError(f"{name} is a suite; specify one of its recipes: {', '.join(recipe.recipes)}")
    if isinstance(recipe, Search):
        return dump_search(recipe)
    if isinstance(recipe, Grid):
        raise UsageError(f"{name} is a grid of {len(recipe.points)} recipes; specify one of its runs")
    return dump_recipe(recipe)


def _expected_result(path: Path) -> dict[str, str | None]:
    """Return score, time and conditions from the `# expected:` line of a recipe's header."""
    lines = (line for line in _header_lines(path) if line != NOT_MEASURED)
    match = next(filter(None, map(EXPECTED.fullmatch, lines)), None)
    return match.groupdict() if match else dict.fromkeys(EXPECTED.groupindex)


def _header_lines(path: Path) -> list[str]:
    """Return the lines of the comment at the start of a recipe."""
    return list(takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines()))


def _header_text(path: Path) -> str:
    """Return the prose of the comment at the start of a recipe, without commands and the expected result."""
    lines = (line for line in _header_lines(path) if not line.startswith(("#   ", "# expected:")))
    return " ".join(line.removeprefix("#").strip() for line in lines)


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each dotted key and its value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def complete_recipe(incomplete: str) -> list[str]:
    """Return the matching names of built-in recipes, for shell completion."""
    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Return the matching recipe keys, each followed by `=`, for shell completion."""
    keys = dict.fromkeys(key for schema in SCHEMAS.values() for key in _dotted_keys(schema))
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Return the matching names of task definitions, for shell completion."""
    return [name for name in TASKS if name.startswith(incomplete)]


def _dotted_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield all dotted keys; a key that may be a section or a value is yielded as both."""
    for name, field in section.model_fields.items():
        kinds = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for inner in sections:
            yield from _dotted_keys(inner, f"{prefix}{name}.")
        if len(sections) < len(kinds):
            yield f"{prefix}{name}"
