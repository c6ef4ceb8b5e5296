"""Recipes as things to look at: listed, resolved, checked, compared, copied, and as a JSON schema for editors."""

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

from bertcli.errors import RecipeError, UsageError
from bertcli.recipe.expansion import OWN_LISTS, Grid
from bertcli.recipe.load import dump_recipe, find_recipe, is_pretraining, load_pretrain_recipe, shipped_recipes
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Suite, SuiteKeys, load_finetuning, singles
from bertcli.tasks import TASKS

END_OF_SENTENCE = re.compile(r"(?<! al)\. (?=[A-Z])")
EXPECTED = re.compile(r"# expected: (?P<score>.+?)(?: in (?P<time>[\d.]+ \w+))?(?: \((?P<conditions>.+)\))?")
NOT_MEASURED = "# expected: not measured"
SCHEMAS: dict[str, type[BaseModel]] = {"finetune": Recipe, "pretrain": PretrainRecipe}


def load_any(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe | PretrainRecipe | Grid | Suite:
    """The recipe, grid or suite of a shipped name, a file or a run folder, with `key=value` overrides.

    Raises:
        RecipeError: with every mistake found.
    """
    name = recipe_of_run(name_or_path)
    if is_pretraining(name):
        return load_pretrain_recipe(name, overrides)
    return load_finetuning(name, overrides)


def recipe_of_run(name_or_path: str) -> str:
    """The recipe inside a run folder; anything else as it is."""
    inside = Path(name_or_path) / "recipe.yaml"
    return str(inside) if inside.is_file() else name_or_path


def list_recipes(words: Sequence[str] = ()) -> list[dict[str, str | None]]:
    """The shipped recipes whose name or header holds all the words: name, verb, what it says of itself, what to expect.

    That is `score`, `time` and `conditions`; None where nothing was measured.
    """
    found: list[dict[str, str | None]] = []
    for name, path in shipped_recipes().items():
        about = _header(path)
        if all(word.lower() in f"{name} {about}".lower() for word in words):
            verb = "pretrain" if name.startswith("pretrain/") else "finetune"
            told = {"recipe": name, "verb": verb, "about": END_OF_SENTENCE.split(about)[0].rstrip(".")}
            found.append(told | _expected(path))
    return found


def show_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> str:
    """The resolved recipe as YAML; of a suite or a grid, one document for each of its recipes.

    Raises:
        UsageError: overrides for a run of tasks learned together, whose recipes are what they were.
    """
    path = Path(recipe_of_run(name_or_path))
    if str(path) != name_or_path and (text := path.read_text("utf-8")).startswith("suite:"):
        if overrides:
            raise UsageError(f"{name_or_path} is a run of several tasks, and shown as it is; leave out the overrides")
        return text
    wanted = load_any(name_or_path, overrides)
    if not isinstance(wanted, Suite | Grid):
        return dump_recipe(wanted)
    return "---\n".join(f"# {name}\n{dump_recipe(recipe)}" for name, recipe in singles(wanted).items())


def copy_recipe(name: str, target: Path, *, with_schema: bool = False) -> None:
    """Write a shipped recipe, comments and all, to a new file.

    Args:
        with_schema: its first line names the JSON schema to editors; that lies beside it, `finetune.schema.json` or
            `pretrain.schema.json`.

    Raises:
        UsageError: the file exists, or another one has the schema's name.
    """
    text = find_recipe(name).read_text("utf-8")
    if with_schema:
        kind = "pretrain" if is_pretraining(name) else "finetune"
        schema = target.with_name(f"{kind}.schema.json")
        text = f"# yaml-language-server: $schema={schema.name}\n{text}"
        wanted = schema_text(kind)
        if schema.exists() and schema.read_text("utf-8") != wanted:
            raise UsageError(f"{schema} exists and is not the schema of this version; move it or name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} exists; name another file") from None
    if with_schema:
        schema.write_text(wanted, "utf-8")


def check_recipes(names: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, list[str]]:
    """What is wrong with each recipe; an empty list if it is fine."""
    problems: dict[str, list[str]] = {}
    for name in names:
        try:
            load_any(name, overrides)
            problems[name] = []
        except RecipeError as error:
            problems[name] = error.problems
    return problems


def compare_recipes(*names: str) -> list[tuple[str, ...]]:
    """Each key in which recipes or runs differ, with the values of all; a key that one of them lacks is `-` there."""
    return compare_texts(*map(_single, names))


def compare_texts(*texts: str) -> list[tuple[str, ...]]:
    """The same of resolved recipes, as they stand in run folders."""
    every = [dict(_flat(YAML(typ="safe").load(io.StringIO(text)))) for text in texts]
    keys = dict.fromkeys(key for one in every for key in one)
    rows = ((key, *(str(one.get(key, "-")) for one in every)) for key in keys)
    return [row for row in rows if len(set(row[1:])) > 1]


def schema_text(kind: str) -> str:
    """The JSON schema of recipes of a kind, as a file holds it."""
    return json.dumps(json_schema(kind), indent=2) + "\n"


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON schema of recipes of a kind, made from the typed recipe; what a file extends need not be repeated.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in SCHEMAS:
        raise UsageError(f"found the kind {kind!r}, expected one of {', '.join(SCHEMAS)}")
    schema = SCHEMAS[kind].model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "recipe that this one is laid over"}
    if kind == "finetune":
        suite = SuiteKeys.model_json_schema()
        schema["properties"] |= suite["properties"]
        schema["$defs"] |= suite["$defs"]
        training = schema["$defs"]["TrainingSection"]["properties"]
        training |= {key: _or_list(known) for key, known in training.items() if key not in OWN_LISTS}
    for part in (schema, *schema["$defs"].values()):  # sections are laid over those of what is extended
        part.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _or_list(known: dict[str, Any]) -> dict[str, Any]:
    """The schema of a key that takes a value or, for a grid, a list of them."""
    value = {name: inner for name, inner in known.items() if name not in ("title", "description", "default")}
    told = {name: inner for name, inner in known.items() if name not in value}
    return told | {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}


def _single(name: str) -> str:
    wanted = load_any(name)
    if isinstance(wanted, Suite):
        raise UsageError(f"{name} is a suite; name one of its recipes: {', '.join(wanted.recipes)}")
    if isinstance(wanted, Grid):
        raise UsageError(f"{name} is a grid of {len(wanted.points)} recipes; name one of its runs")
    return dump_recipe(wanted)


def _expected(path: Path) -> dict[str, str | None]:
    """Score, time and conditions that the header of a recipe says to expect."""
    lines = (line for line in _comment(path) if line != NOT_MEASURED)
    found = next(filter(None, map(EXPECTED.fullmatch, lines)), None)
    return found.groupdict() if found else dict.fromkeys(EXPECTED.groupindex)


def _comment(path: Path) -> list[str]:
    """The lines of the comment a recipe begins with."""
    return list(takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines()))


def _header(path: Path) -> str:
    """The words of the comment a recipe begins with, without its commands and what to expect."""
    lines = (line for line in _comment(path) if not line.startswith(("#   ", "# expected:")))
    return " ".join(line.removeprefix("#").strip() for line in lines)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots, and their values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped names for the shell's completion."""
    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Recipe keys, each with `=`, for the shell's completion."""
    known = dict.fromkeys(key for kind in SCHEMAS.values() for key in _keys(kind))
    return [f"{key}=" for key in known if key.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Names of task rows for the shell's completion."""
    return [name for name in TASKS if name.startswith(incomplete)]


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys with dots; one that is a section or a value is named as both."""
    for name, known in section.model_fields.items():
        kinds = get_args(known.annotation) if isinstance(known.annotation, UnionType) else (known.annotation,)
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for kind in inner:
            yield from _keys(kind, f"{prefix}{name}.")
        if len(inner) < len(kinds):
            yield f"{prefix}{name}"
