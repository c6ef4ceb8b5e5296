"""Partial recipes from YAML 1.2 files and the command line: plain values, and the location where each key was set.

Only mappings, lists and scalars are read; YAML tags cannot construct objects.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bertcli.errors import RecipeError, quoted, shortened
from bertcli.recipe.schema import Recipe
from bertcli.tasks.task import Task

KeyPath = tuple[str | int, ...]
COMMAND_LINE = "command line"
WIDE_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose byte order mark is a prefix of this one
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
MAX_BYTES = 1_000_000  # in a recipe file
MAX_VALUES, MAX_DEPTH = 100_000, 20  # in a recipe, after aliases are expanded
DATA_SUFFIXES = {".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow", ".conll", ".gz", ".zst", ".bz2", ".zip"}
RECIPE_SUFFIXES = {".yaml", ".yml"}
TOP_LEVEL_KEYS = {*Recipe.model_fields, "extends", "search", "suite", "corpus", "tokenizer", "objective"}
KNOWN_KEY_LINE = re.compile(rf"^(?:{'|'.join(sorted(TOP_LEVEL_KEYS))}):", re.MULTILINE)
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels, which is too deep for a recipe"


@dataclass
class RecipeLayer:
    """A partial recipe: the values of one source, and the location of each key (`file:line` or the command line)."""

    schema: type[BaseModel] = Recipe
    values: dict[str, Any] = field(default_factory=dict)
    locations: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def location(self, keys: KeyPath) -> str:
        """Return the location of `keys`, or of the nearest enclosing section."""
        while keys and keys not in self.locations:
            keys = keys[:-1]
        return self.locations.get(keys, COMMAND_LINE)


def read_yaml_file(path: Path, schema: type[BaseModel]) -> RecipeLayer:
    """Read a YAML file as a partial recipe of the given schema; errors are collected in its `problems`.

    Raises:
        RecipeError: if the file contains data, not a recipe.
    """
    layer = RecipeLayer(schema, locations={(): f"{path}:1"})
    if path.suffix.lower() in DATA_SUFFIXES:
        raise RecipeError([_data_problem(path, schema)])
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        layer.problems.append(f"{path}: cannot be read ({error.strerror})")
        return layer
    if mark := next((mark for mark in WIDE_ENCODINGS if content.startswith(mark)), None):
        found = WIDE_ENCODINGS[mark]
        layer.problems.append(f"{path}:1: found {found}, expected a YAML file in UTF-8; save it as UTF-8")
        return layer
    if len(content) > MAX_BYTES or b"\0" in content:
        raise RecipeError([_data_problem(path, schema)])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        layer.problems.append(f"{path}:1: found bytes that are not UTF-8, expected a YAML file; save it as UTF-8")
        return layer
    problem, node = _compose(text, str(path))
    has_key = _has_known_key(node) if problem is None else KNOWN_KEY_LINE.search(text)
    if path.suffix.lower() not in RECIPE_SUFFIXES and text.strip() and not has_key:
        raise RecipeError([_data_problem(path, schema)])
    if problem is None and not isinstance(node, MappingNode):
        found = "nothing" if node is None else "a list" if isinstance(node, SequenceNode) else quoted(node.value)
        problem = f"{path}:1: found {found}, expected `key: value` lines (at least `task: …`)"
    if problem is not None or node is None:
        layer.problems.append(str(problem))
        return layer
    layer.values = _to_plain_value(node, (), str(path), layer)
    return layer


def _has_known_key(node: Node | None) -> bool:
    """Return whether a node is a mapping with at least one top-level key of any kind of recipe."""
    return isinstance(node, MappingNode) and any(
        isinstance(key, ScalarNode) and key.value in TOP_LEVEL_KEYS for key, _ in node.value
    )


def _data_problem(path: Path, schema: type[BaseModel]) -> str:
    """Return the message for a data file given as a recipe, which suggests a command for such a file."""
    pretraining = f'`bertcli pretrain pretrain/domain "corpus.sources=[{{files: {path}}}]"`'
    if schema is not Recipe:
        cure = f"Pretrain on it with {pretraining}"
    else:
        cure = f"Create a recipe for it with `bertcli init {path}`"
        cure += f", or pretrain on its text with {pretraining}" if path.suffix.lower() == ".txt" else ""
    return f"{path} is data, not a recipe. {cure}."


@lru_cache(maxsize=64)  # a recipe, and those that it extends, are read to determine its kind and again to load it
def _compose(text: str, path: str | None) -> tuple[str | None, Node | None]:
    """Parse YAML; return the problem, if any, and the root node (None if there is no content)."""
    location = f"{path}:1" if path else COMMAND_LINE
    try:
        node = YAML(typ="rt", pure=True).compose(text)
    except RecursionError:
        return f"{path or COMMAND_LINE}{_deep_line(text) if path else ''}: {TOO_DEEP}", None
    except YAMLError as error:
        return _syntax_problem(location.removesuffix(":1"), error), None
    except Exception as error:  # the parser itself fails on some invalid input
        return f"{location}: invalid YAML ({shortened(str(error))}); check indentation, colons and quotes", None
    try:
        if node is not None:
            _measure(node, path, 1, {})
    except _TooLargeError as error:
        return str(error), None
    return None, node


def _deep_line(text: str) -> str:
    """Return `:line` of the first value that is nested too deeply."""
    depth = 0
    with suppress(YAMLError, RecursionError):
        for event in YAML(typ="rt", pure=True).parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                return f":{event.start_mark.line + 1}"
    return ":1"


class _TooLargeError(Exception):
    """Aliases or nesting that exceed the size limits of a recipe."""


def _measure(node: Node, path: str | None, depth: int, sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of values and levels in a node after its aliases are expanded.

    Args:
        sizes: results by `id(node)`; an alias is the same node as its anchor, so each node is measured only once.

    Raises:
        _TooLargeError: if an alias refers to a node that contains it, or there are too many values or levels.
    """
    if id(node) in sizes:
        num_values, num_levels = sizes[id(node)]
        if not num_levels:
            raise _TooLargeError(
                f"{_location(path, node)}: found an alias of a value that contains it, expected plain values"
            )
    else:
        sizes[id(node)] = (0, 0)  # until it is complete
        num_values, num_levels = 1, 1
        if not isinstance(node, ScalarNode):
            pairs = isinstance(node, MappingNode)
            for child in (inner for pair in node.value for inner in pair) if pairs else node.value:
                if depth >= MAX_DEPTH:
                    raise _TooLargeError(f"{_location(path, child)}: {TOO_DEEP}")
                values, levels = _measure(child, path, depth + 1, sizes)
                num_values, num_levels = num_values + values, max(num_levels, levels + 1)
        sizes[id(node)] = (num_values, num_levels)
    if depth + num_levels - 1 > MAX_DEPTH:
        raise _TooLargeError(f"{_location(path, node)}: {TOO_DEEP}")
    if num_values > MAX_VALUES:
        raise _TooLargeError(
            f"{_location(path, node)}: found aliases or lists that expand to more than {MAX_VALUES} values, "
            "which is too many for a recipe"
        )
    return num_values, num_levels


def parse_overrides(overrides: Iterable[str], schema: type[BaseModel]) -> RecipeLayer:
    """Parse `key=value` arguments of the command line into one partial recipe; later arguments take precedence."""
    layer = RecipeLayer(schema, locations={(): COMMAND_LINE})
    for argument in overrides:
        dotted, equals, text = argument.partition("=")
        keys: KeyPath = tuple(dotted.split("."))
        if not equals or not all(keys):
            layer.problems.append(
                f"{COMMAND_LINE}: found {quoted(argument)}, expected KEY=VALUE such as training.epochs=2"
            )
            continue
        problem, node = _compose(text, None)
        if problem is not None:
            is_syntax = "invalid YAML" in problem
            cure = f"{COMMAND_LINE}: found {quoted(argument)}, whose value is not YAML; quote it"
            layer.problems.append(cure if is_syntax else f"{problem} ({quoted(argument)})")
            continue
        override = RecipeLayer(schema)
        for end in range(len(keys) + 1):
            override.locations[keys[:end]] = COMMAND_LINE
        value = None if node is None else _to_plain_value(node, keys, None, override)
        for key in reversed(keys):
            value = {str(key): value}
        override.values = value or {}
        layer.problems += override.problems
        merge_layers(layer, override)
    return layer


def conflicting_overrides(overrides: Iterable[str]) -> Iterator[str]:
    """Yield an error message for each `key=value` argument that replaces the value of an earlier one."""
    earlier: dict[KeyPath, tuple[str, str]] = {}
    for argument in overrides:
        for keys, value in _leaves(parse_overrides([argument], Recipe).values, ()):
            clash = next(
                (
                    other
                    for path, (other, other_value) in earlier.items()
                    if path[: len(keys)] == keys and (len(path) > len(keys) or other_value != repr(value))
                ),
                None,
            )
            if clash is not None:
                yield f"{COMMAND_LINE}: found both {quoted(clash)} and {quoted(argument)}; remove one of them"
                break
            earlier[keys] = (argument, repr(value))


def _leaves(values: dict[str, Any], prefix: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the path and value of each key that is not a section."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def merge_layers(base: RecipeLayer, override: RecipeLayer) -> None:
    """Merge `override` into `base`, in place: mappings are merged, everything else is replaced."""
    replaced: set[KeyPath] = set()
    _merge_values(base.values, override.values, (), replaced)

    def is_replaced(keys: KeyPath) -> bool:
        return any(keys[:end] in replaced for end in range(1, len(keys) + 1))

    kept = {keys: location for keys, location in base.locations.items() if not is_replaced(keys)}
    base.locations = kept | {keys: location for keys, location in override.locations.items() if is_replaced(keys)}


def _merge_values(base: dict[str, Any], override: dict[str, Any], prefix: KeyPath, replaced: set[KeyPath]) -> None:
    for key, value in override.items():
        is_section = prefix != ("search",)  # whose values are distributions, each a mapping that is replaced as a whole
        if is_section and isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge_values(base[key], value, (*prefix, key), replaced)
        else:
            base[key] = value
            replaced.add((*prefix, key))


def _to_plain_value(node: Node, keys: KeyPath, path: str | None, layer: RecipeLayer) -> Any:
    """Convert a node to plain values; record its location and those of its children in the layer."""
    if not str(node.tag).startswith("tag:yaml.org,2002:") or "python" in str(node.tag):
        layer.problems.append(
            f"{_location(path, node)}: found the tag {shortened(str(node.tag))}, expected plain values without tags"
        )
        return None
    if isinstance(node, ScalarNode):
        return _parse_scalar(node, _is_text_field(layer.schema, keys))
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            layer.locations[(*keys, index)] = _location(path, item)
        return [_to_plain_value(item, (*keys, index), path, layer) for index, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        location = _location(path, key_node)
        if not isinstance(key_node, ScalarNode):
            layer.problems.append(f"{location}: found a list or section as a key, expected text")
            continue
        key = str(key_node.value)
        child = (*keys, key)
        if key in values:
            name = shortened(_dotted(child))
            layer.problems.append(f"{location}: found key {name} twice (first at {layer.locations[child]})")
        layer.locations[child] = location
        values[key] = _to_plain_value(value_node, child, path, layer)
    return values


def _location(path: str | None, node: Node) -> str:
    return f"{path}:{node.start_mark.line + 1}" if path else COMMAND_LINE


def _dotted(keys: KeyPath) -> str:
    return ".".join(map(str, keys))


def _parse_scalar(node: ScalarNode, as_text: bool) -> Any:
    """Parse a scalar according to YAML 1.2's core schema, except that numbers with leading zeros (`007`) stay text.

    If `as_text`, other numbers and booleans (`1`, `true`) stay text too.
    """
    tag = str(node.tag).rpartition(":")[2]
    text = node.value
    if tag == "null":
        return None
    if tag == "bool" and not as_text:
        return text.lower() == "true"
    if tag in ("int", "float") and not as_text:
        return _parse_number(text)
    return text


def _parse_number(text: str) -> Any:
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
        return text  # 007 is a name, not the number seven
    for number_type in (int, float):
        try:
            return number_type(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            continue
    return int(text, 0) if text[:2] in ("0x", "0o") else math.nan


def _is_text_field(schema: type[BaseModel], keys: KeyPath) -> bool:
    """Return whether the field at `keys` accepts text (or a list of texts) but not numbers."""
    model = schema
    names = [key for key in keys if isinstance(key, str)]
    for depth, key in enumerate(names):
        field_info = model.model_fields.get(key)
        if field_info is None:
            return False
        if model is Recipe and key == "task" and depth < len(names) - 1:
            model = Task
            continue
        types = [kind for kind in _flatten_type(field_info.annotation) if isinstance(kind, type)]
        sections = [kind for kind in types if issubclass(kind, BaseModel)]
        if not sections or depth == len(names) - 1:
            return str in types and not {int, float} & set(types)
        model = sections[0]
    return False


def _flatten_type(annotation: Any) -> Iterator[Any]:
    """Yield the plain types inside an annotation: `tuple[str, ...] | None` → str, NoneType."""
    if get_origin(annotation) in (Union, UnionType, tuple):
        for inner in get_args(annotation):
            yield from _flatten_type(inner)
    else:
        yield annotation


def _syntax_problem(path: str, error: YAMLError) -> str:
    mark = error.problem_mark or error.context_mark if isinstance(error, MarkedYAMLError) else None
    location = f"{path}:{mark.line + 1}" if mark else f"{path}:1"
    message = shortened(getattr(error, "problem", None) or str(error).splitlines()[0])
    return f"{location}: invalid YAML ({message}); check indentation, colons and quotes around here"
