"""Recipe sources as layers of plain values that remember where each key was set: YAML 1.2 files and the command line.

Only mappings, lists and scalars are read: no YAML tag can construct an object.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bertcli.recipe.schema import Recipe
from bertcli.tasks.task import Task

KeyPath = tuple[str | int, ...]
COMMAND_LINE = "command line"
MAX_QUOTED_CHARS = 80


@dataclass
class RecipeLayer:
    """The values of one source, and the location of each key (`file:line`, or the command line)."""

    schema: type[BaseModel] = Recipe
    values: dict[str, Any] = field(default_factory=dict)
    locations: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def location(self, keys: KeyPath) -> str:
        """The location of `keys`, or of the nearest enclosing section."""
        while keys and keys not in self.locations:
            keys = keys[:-1]
        return self.locations.get(keys, COMMAND_LINE)


def quoted(value: object) -> str:
    """The `repr` of a value from a recipe, truncated for an error message."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[: MAX_QUOTED_CHARS - 1]}…"


def read_yaml_file(path: Path, schema: type[BaseModel]) -> RecipeLayer:
    """Read a YAML file as a recipe of the given schema; errors are collected in the layer's `problems`."""
    layer = RecipeLayer(schema, locations={(): f"{path}:1"})
    try:
        text = path.read_text("utf-8-sig")
        node = YAML(typ="rt", pure=True).compose(text)
    except UnicodeDecodeError:
        layer.problems.append(f"{path}:1: found bytes that are not UTF-8, expected a YAML file in UTF-8")
        return layer
    except OSError as error:
        layer.problems.append(f"{path}: cannot be read ({error.strerror})")
        return layer
    except YAMLError as error:
        layer.problems.append(_syntax_problem(path, error))
        return layer
    if not isinstance(node, MappingNode):
        found = "nothing" if node is None else "a list" if isinstance(node, SequenceNode) else quoted(node.value)
        layer.problems.append(f"{path}:1: found {found}, expected `key: value` lines (at least `task: …`)")
        return layer
    layer.values = _to_plain_value(node, (), str(path), layer)
    return layer


def parse_overrides(overrides: Iterable[str], schema: type[BaseModel]) -> RecipeLayer:
    """Parse `key=value` arguments of the command line into one layer; later arguments win."""
    layer = RecipeLayer(schema, locations={(): COMMAND_LINE})
    for argument in overrides:
        dotted, equals, text = argument.partition("=")
        keys: KeyPath = tuple(dotted.split("."))
        if not equals or not all(keys):
            layer.problems.append(
                f"{COMMAND_LINE}: found {quoted(argument)}, expected KEY=VALUE such as training.epochs=2"
            )
            continue
        try:
            node = YAML(typ="rt", pure=True).compose(text)
        except YAMLError:
            layer.problems.append(f"{COMMAND_LINE}: found {quoted(argument)}, whose value is not YAML; quote it")
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


def merge_layers(base: RecipeLayer, override: RecipeLayer, keys: KeyPath = ()) -> None:
    """Merge `override` into `base`, in place: mappings are merged, everything else is replaced."""
    base_values, override_values = _value_at(base.values, keys), _value_at(override.values, keys)
    for key, value in override_values.items():
        path = (*keys, key)
        if isinstance(value, dict) and isinstance(base_values.get(key), dict):
            merge_layers(base, override, path)
        else:
            base_values[key] = value
            for stale in [inner for inner in base.locations if inner[: len(path)] == path]:
                del base.locations[stale]
            base.locations |= {
                inner: location for inner, location in override.locations.items() if inner[: len(path)] == path
            }


def _value_at(values: dict[str, Any], keys: KeyPath) -> dict[str, Any]:
    for key in keys:
        values = values[str(key)]
    return values


def _to_plain_value(node: Node, keys: KeyPath, path: str | None, layer: RecipeLayer) -> Any:
    """Convert a node to plain values; the layer records its location and those of its children."""
    if not str(node.tag).startswith("tag:yaml.org,2002:") or "python" in str(node.tag):
        layer.problems.append(f"{_location(path, node)}: found the tag {node.tag}, expected plain values without tags")
        return None
    if isinstance(node, ScalarNode):
        return _parse_scalar(node, _is_text_field(layer.schema, keys))
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            layer.locations[(*keys, index)] = _location(path, item)
        return [_to_plain_value(item, (*keys, index), path, layer) for index, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        child = (*keys, key)
        location = _location(path, key_node)
        if key in values:
            layer.problems.append(f"{location}: found key {_dotted(child)} twice (first at {layer.locations[child]})")
        layer.locations[child] = location
        values[key] = _to_plain_value(value_node, child, path, layer)
    return values


def _location(path: str | None, node: Node) -> str:
    return f"{path}:{node.start_mark.line + 1}" if path else COMMAND_LINE


def _dotted(keys: KeyPath) -> str:
    return ".".join(map(str, keys))


def _parse_scalar(node: ScalarNode, as_text: bool) -> Any:
    """Parse a scalar by YAML 1.2's core schema; with `as_text`, `007`, `1` and `true` stay text."""
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
    """Whether the field at `keys` accepts text (or a list of texts) but no number."""
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
    """The plain types inside an annotation: `tuple[str, ...] | None` → str, NoneType."""
    if get_origin(annotation) in (Union, UnionType, tuple):
        for inner in get_args(annotation):
            yield from _flatten_type(inner)
    else:
        yield annotation


def _syntax_problem(path: Path, error: YAMLError) -> str:
    mark = error.problem_mark or error.context_mark if isinstance(error, MarkedYAMLError) else None
    location = f"{path}:{mark.line + 1}" if mark else f"{path}:1"
    message = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{location}: invalid YAML ({message}); check indentation, colons and quotes around here"
