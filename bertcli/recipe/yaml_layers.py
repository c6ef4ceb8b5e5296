"""Recipe sources as layers of plain values that remember where each stood: files (YAML 1.2) and the command line.

Only mappings, lists and scalars are read: no YAML tag can make an object.
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

Keys = tuple[str | int, ...]
COMMAND_LINE = "command line"


@dataclass
class Layer:
    """Values of one source; `places` says where each key stands (`file:line`, or the command line)."""

    root: type[BaseModel] = Recipe  # what kind of recipe it is of
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, keys: Keys) -> str:
        """Where `keys` stands, or the nearest section around it."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places.get(keys, COMMAND_LINE)


def read_file(path: Path, root: type[BaseModel]) -> Layer:
    """The mapping in a YAML file, a recipe of the kind `root`; what is wrong with it is in `problems`."""
    layer = Layer(root, places={(): f"{path}:1"})
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
        found = "nothing" if node is None else "a list" if isinstance(node, SequenceNode) else repr(node.value)
        layer.problems.append(f"{path}:1: found {found}, expected `key: value` lines (at least `task: …`)")
        return layer
    layer.values = _construct(node, (), str(path), layer)
    return layer


def read_overrides(overrides: Iterable[str], root: type[BaseModel]) -> Layer:
    """`key=value` words of the command line as one layer; a later word wins."""
    layer = Layer(root, places={(): COMMAND_LINE})
    for word in overrides:
        dotted, equals, text = word.partition("=")
        keys: Keys = tuple(dotted.split("."))
        if not equals or not all(keys):
            layer.problems.append(f"{COMMAND_LINE}: found {word!r}, expected KEY=VALUE such as training.epochs=2")
            continue
        try:
            node = YAML(typ="rt", pure=True).compose(text)
        except YAMLError:
            layer.problems.append(f"{COMMAND_LINE}: found {word!r}, whose value is not YAML; quote it")
            continue
        part = Layer(root)
        for end in range(len(keys) + 1):
            part.places[keys[:end]] = COMMAND_LINE
        value = None if node is None else _construct(node, keys, None, part)
        for key in reversed(keys):
            value = {str(key): value}
        part.values = value or {}
        layer.problems += part.problems
        overlay(layer, part)
    return layer


def overlay(below: Layer, above: Layer, keys: Keys = ()) -> None:
    """Put `above` over `below`, in place: mappings are merged, everything else is replaced."""
    lower, upper = _at(below.values, keys), _at(above.values, keys)
    for key, value in upper.items():
        here = (*keys, key)
        if isinstance(value, dict) and isinstance(lower.get(key), dict):
            overlay(below, above, here)
        else:
            lower[key] = value
            for known in [known for known in below.places if known[: len(here)] == here]:
                del below.places[known]
            below.places |= {known: place for known, place in above.places.items() if known[: len(here)] == here}


def _at(values: dict[str, Any], keys: Keys) -> dict[str, Any]:
    for key in keys:
        values = values[str(key)]
    return values


def _construct(node: Node, keys: Keys, path: str | None, layer: Layer) -> Any:
    """Plain values of a node; its place (and those inside it) go to the layer."""
    if not str(node.tag).startswith("tag:yaml.org,2002:") or "python" in str(node.tag):
        layer.problems.append(f"{_place(path, node)}: found the tag {node.tag}, expected plain values without tags")
        return None
    if isinstance(node, ScalarNode):
        return _scalar(node, _wants_text(layer.root, keys))
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            layer.places[(*keys, index)] = _place(path, item)
        return [_construct(item, (*keys, index), path, layer) for index, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        here = (*keys, key)
        place = _place(path, key_node)
        if key in values:
            layer.problems.append(f"{place}: found key {_dotted(here)} twice (first at {layer.places[here]})")
        layer.places[here] = place
        values[key] = _construct(value_node, here, path, layer)
    return values


def _place(path: str | None, node: Node) -> str:
    return f"{path}:{node.start_mark.line + 1}" if path else COMMAND_LINE


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _scalar(node: ScalarNode, wants_text: bool) -> Any:
    """A scalar by YAML 1.2's core rules; `007`, `1` and `true` stay text where the recipe wants text."""
    kind = str(node.tag).rpartition(":")[2]
    text = node.value
    if kind == "null":
        return None
    if kind == "bool" and not wants_text:
        return text.lower() == "true"
    if kind in ("int", "float") and not wants_text:
        return _number(text)
    return text


def _number(text: str) -> Any:
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
        return text  # 007 is a name, not seven
    for read in (int, float):
        try:
            return read(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            continue
    return int(text, 0) if text[:2] in ("0x", "0o") else math.nan


def _wants_text(root: type[BaseModel], keys: Keys) -> bool:
    """Whether the recipe's field at `keys` takes text (or a list of texts) and no number."""
    model = root
    names = [key for key in keys if isinstance(key, str)]
    for depth, key in enumerate(names):
        known = model.model_fields.get(key)
        if known is None:
            return False
        if model is Recipe and key == "task" and depth < len(names) - 1:
            model = Task
            continue
        inner = [kind for kind in _kinds(known.annotation) if isinstance(kind, type)]
        sections = [kind for kind in inner if issubclass(kind, BaseModel)]
        if not sections or depth == len(names) - 1:
            return str in inner and not {int, float} & set(inner)
        model = sections[0]
    return False


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types inside an annotation: `tuple[str, ...] | None` → str, NoneType."""
    if get_origin(annotation) in (Union, UnionType, tuple):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield annotation


def _syntax_problem(path: Path, error: YAMLError) -> str:
    mark = error.problem_mark or error.context_mark if isinstance(error, MarkedYAMLError) else None
    place = f"{path}:{mark.line + 1}" if mark else f"{path}:1"
    words = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{place}: this is not YAML ({words}); check indentation, colons and quotes around here"
